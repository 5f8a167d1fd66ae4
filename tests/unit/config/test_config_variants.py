"""Choosing one of several policies or algorithms: what stays of the keys that were set for another."""

from __future__ import annotations

from pathlib import Path

import pytest

from rlserve.config import LoadedConfig, load
from rlserve.errors import ConfigurationError
from rlserve.manager.config import QueueThresholdConfig, StaticConfig
from rlserve.trainers import DeepSpeedTrainerConfig, GRPOConfig

RUN = """\
defaults:
  - manager: eager
  - algorithm: ppo
  - _self_
model: {path: org/model}
data: {path: org/data}
reward: {function: "my.module:score"}
pool: {slots: [{type: cpu, count: 2}]}
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run.yaml").write_text(RUN)
    return tmp_path


def loaded(*overrides: str) -> LoadedConfig:
    return load("run.yaml", overrides, discovered={})


def problems(*overrides: str) -> list[str]:
    with pytest.raises(ConfigurationError) as caught:
        loaded(*overrides)
    return str(caught.value).splitlines()


@pytest.mark.parametrize("choice", ["algorithm=grpo", "algorithm.name=grpo"])
def test_a_group_and_a_name_choose_alike(choice: str) -> None:
    assert loaded(choice, "algorithm.clip_ratio_low=0.1").config.algorithm == GRPOConfig(clip_ratio_low=0.1)


def test_keys_of_a_file_that_names_another_variant_go_with_it_and_shared_ones_stay(folder: Path) -> None:
    eager = loaded().config.manager
    assert isinstance(eager, QueueThresholdConfig)
    assert loaded("manager.policy=static").config.manager == StaticConfig(interval_s=eager.interval_s)
    assert loaded("manager=static").config.manager == StaticConfig()
    (folder / "run.yaml").write_text(RUN + "manager: {policy: queue_threshold, queue_high: 9}\n")
    assert loaded("manager.policy=static").config.manager == StaticConfig(interval_s=eager.interval_s)


def test_a_key_that_the_chosen_variant_lacks_is_refused_with_the_one_that_has_it(folder: Path) -> None:
    keys = "keys of static: policy, interval_s"
    refusal = f"manager.policy=static has no such key, manager.policy=queue_threshold has; {keys}"
    assert problems("manager=static", "manager.queue_high=9") == [f"override: manager.queue_high: {refusal}"]
    (folder / "run.yaml").write_text(RUN + "manager: {queue_high: 9}\n")
    assert problems("manager=static") == [f"run.yaml: manager.queue_high: {refusal}"]
    (found,) = problems("algorithm=grpo", "algorithm.gae_lambda=0.9")
    assert "algorithm.name=grpo has no such key, algorithm.name=ppo has" in found
    (found,) = problems("trainer.zero_stage=3")
    assert "trainer.backend=torch has no such key, trainer.backend=deepspeed has" in found
    chosen = loaded("trainer.backend=deepspeed", "trainer.zero_stage=3", "trainer.offload_parameters=true")
    assert chosen.config.trainer == DeepSpeedTrainerConfig(zero_stage=3, offload_parameters=True)


def test_a_variant_that_does_not_exist_is_refused_alone() -> None:
    assert problems("manager.policy=eager") == [
        "override: manager.policy: must be one of rate_matching, queue_threshold, static, got 'eager'"
    ]
