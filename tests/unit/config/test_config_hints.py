"""Every hint works when it is followed: what a message says to write is written, and the problem is gone."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from pathlib import Path

import pytest

from rlserve.config import LoadedConfig, load
from rlserve.errors import ConfigurationError

RUN = """\
model: {path: org/model}
data: {path: org/data}
reward: {function: "my.module:score"}
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with ``run.yaml`` in it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run.yaml").write_text(RUN, encoding="utf-8")
    return tmp_path


def loaded(*overrides: str, path: str = "run.yaml", discovered: Mapping[str, int] | None = None) -> LoadedConfig:
    return load(path, overrides, discovered=discovered or {})


def hints_in(message: str) -> list[str]:
    """Every override that a message tells the user to write, as the shell would hand it on."""
    words = re.findall(r"('(?:[^']|'\"'\"')*=(?:[^']|'\"'\"')*'|(?<=[ (])[\w.]+=[^\s,;()…]+)", message)
    return [shlex.split(word)[0] for word in words]


@pytest.mark.parametrize(
    ("wrong", "values"),
    [
        ("+seed=3", [{"seed": 3}]),
        ("++seed=3", [{"seed": 3}]),
        ("rollout.stop=a,b", [{"rollout.stop": ("a", "b")}, {"rollout.stop": ("a,b",)}]),
        ("rollout.stop=</a>,</b>", [{"rollout.stop": ("</a>", "</b>")}, {"rollout.stop": ("</a>,</b>",)}]),
        ("tracking.wandb.tags=x y,z", [{"tracking.wandb.tags": ("x y", "z")}, {"tracking.wandb.tags": ("x y,z",)}]),
        ("pool.slots={type: cpu-q, count: 1},{type: cpu-r, count: 1}", [{"pool.slots.1.type": "cpu-r"}]),
    ],
)
def test_a_hint_works_when_it_is_followed(folder: Path, wrong: str, values: list[dict[str, object]]) -> None:
    with pytest.raises(ConfigurationError) as caught:
        loaded(wrong)
    hints = hints_in(str(caught.value).replace(f": {wrong}:", ":"))
    assert len(hints) == len(values)
    for hint, expected in zip(hints, values, strict=True):
        config = loaded(hint).config
        for key, value in expected.items():
            found: object = config
            for part in key.split("."):
                found = found[int(part)] if isinstance(found, tuple) else getattr(found, part)
            assert found == value


@pytest.mark.parametrize(
    "wrong",
    [
        "trainer.learning_rat=1e-5",
        "rollout.engine.block_sise=16",
        "gamma=0.5",
        "trainer.gamma=0.5",
        "tracking.wandb.tag=a",
        "sed=1",
        "pool.slots.0.cuont=2",
    ],
)
def test_a_suggested_key_is_the_right_one(folder: Path, wrong: str) -> None:
    slots = "pool.slots=[{type:cpu,count:2},{type:cpu,count:2}]"
    with pytest.raises(ConfigurationError) as caught:
        loaded(slots, wrong)
    found = re.findall(r"did you mean ([\w.]+)\?", str(caught.value))
    assert len(found) == 1
    loaded(slots, f"{found[0]}={wrong.partition('=')[2]}")


@pytest.mark.parametrize(
    ("wrong", "discovered", "num_hints"),
    [
        (["data.path=org/data"], {}, 1),
        (["model.path=org/model"], {}, 1),
        (["pool=h100_h200"], {"H100": 2}, 2),
        (["launch.address=auto"], {}, 1),
        (["model.tokenizer_path=org/model"], {}, 1),
    ],
)
def test_a_remedy_for_parts_that_do_not_fit_works(
    folder: Path, wrong: list[str], discovered: Mapping[str, int], num_hints: int
) -> None:
    with pytest.raises(ConfigurationError) as caught:
        loaded(*wrong, path="conf/rlhf.yaml", discovered=discovered)
    hints = [hint for hint in hints_in(str(caught.value)) if hint.partition(":")[0] not in wrong]
    hints = [hint for hint in hints if hint not in ("launch.kind=local:", "model.path=builtin:addition")]
    assert len(hints) == num_hints, caught.value
    for hint in hints:
        loaded(*wrong, hint, path="conf/rlhf.yaml", discovered=discovered)


@pytest.mark.parametrize(
    "doubtful",
    [
        ["pool=two"],
        ["manager.min_rollout_share=0.5", "manager.max_rollout_share=0.6"],
    ],
)
def test_a_remedy_for_what_cannot_act_ends_the_remark(folder: Path, doubtful: list[str]) -> None:
    (remark,) = loaded(*doubtful, path="conf/rlhf.yaml").remarks
    assert hints_in(str(remark)) == ["manager=static"]
    keys = [word for word in doubtful if not word.startswith("manager")]  # a static one has none of these
    assert loaded(*keys, "manager=static", path="conf/rlhf.yaml").remarks == ()


def test_a_start_that_the_manager_would_not_keep_is_mended_as_it_says(folder: Path) -> None:
    doubtful = "manager.max_rollout_share=0.4"
    (remark,) = loaded(doubtful, path="conf/rlhf.yaml").remarks
    assert "set pool.num_initial_rollout" in str(remark)
    remarks = loaded(doubtful, "pool.num_initial_rollout=1", path="conf/rlhf.yaml").remarks
    assert remark not in remarks


def test_a_name_of_a_configuration_that_a_message_shows_can_be_loaded(folder: Path) -> None:
    with pytest.raises(ConfigurationError) as caught:
        loaded(path="conf/rlhff.yaml")
    for path in str(caught.value).partition("come with rlserve: ")[2].split(", "):
        loaded(path=path)
