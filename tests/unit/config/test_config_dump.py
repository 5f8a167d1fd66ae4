"""Writing a configuration and reading it back."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rlserve.config import RunConfig, load, to_yaml
from rlserve.config.tree import CheckpointConfig, ModelConfig
from rlserve.pool.config import PoolConfig, SlotGroupConfig
from rlserve.rollout.config import DataConfig, RewardConfig, RolloutConfig
from rlserve.tracking.config import TrackingConfig, WandbConfig
from rlserve.trainers.backends.config import TorchTrainerConfig

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12).filter(lambda text: text != "???")
TRICKY = st.sampled_from(
    [
        "1e-5",
        "null",
        "yes",
        "0x1f",
        "${x}",
        "\\${x}",
        "\\\\${oc.env:HOME}",
        "a: b",
        "#c",
        "- d",
        "${",
        "~",
        ".5",
        "=",
        "\n",
    ]
)
POSITIVE = st.floats(min_value=1e-300, max_value=1e300)

BASE = RunConfig(
    model=ModelConfig(path="org/model"),
    data=DataConfig(path="org/data"),
    reward=RewardConfig(function="my.module:score", module_folder="/modules"),
    output_dir="/runs",
)


@st.composite
def run_configs(draw: st.DrawFn) -> RunConfig:
    texts = TEXT | TRICKY
    groups = st.builds(
        SlotGroupConfig,
        type=texts.map(lambda text: f"cpu{text}"),
        count=st.integers(1, 5),
        prefer=st.sampled_from(["train", None]),
    )
    slots = draw(st.just("auto") | st.lists(groups, min_size=2, max_size=3).map(tuple))
    return dataclasses.replace(
        BASE,
        seed=draw(st.integers(0, 2**70)),
        data=DataConfig(
            path="org/data",
            prompt_field=draw(texts),
            answer_field=draw(st.none() | texts),
            apply_chat_template=True,
            chat_template_kwargs=draw(st.dictionaries(st.sampled_from("ab"), texts | st.booleans() | st.lists(texts))),
        ),
        checkpoint=CheckpointConfig(every_steps=draw(st.integers(0, 9))),
        trainer=TorchTrainerConfig(learning_rate=draw(POSITIVE), weight_decay=draw(POSITIVE)),
        rollout=RolloutConfig(stop=tuple(draw(st.lists(texts, max_size=3)))),
        pool=PoolConfig(slots=slots),
        tracking=TrackingConfig(
            wandb=WandbConfig(enabled=draw(st.booleans()), project=draw(texts), group=draw(st.none() | texts))
        ),
    )


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=15)
@given(config=run_configs())
def test_what_is_written_is_read_back(config: RunConfig, tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(to_yaml(config), encoding="utf-8")
    assert load(str(path), discovered={}).config == config


def test_a_group_chosen_on_top_of_a_written_configuration_wins(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(to_yaml(BASE), encoding="utf-8")
    slots = load(str(path), ["pool=two"], discovered={}).config.pool.slots
    assert [group.type for group in slots] == ["cpu-a", "cpu-b"]  # type: ignore[union-attr]


def test_no_secret_of_the_environment_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "secret-4711")
    monkeypatch.setenv("HF_TOKEN", "secret-4711")
    assert "secret-4711" not in to_yaml(load("conf/rlhf.yaml", discovered={}).config)
