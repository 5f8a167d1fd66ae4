"""What is refused of a run that learns from a data set, and of one that does not."""

from __future__ import annotations

from typing import Any

import pytest
from config_builders import PACED, config_of, problems_of

from rlserve.config import load
from rlserve.config.pool_split import first_roles, render_split
from rlserve.errors import ConfigurationError
from rlserve.manager.roles import Role
from rlserve.pool.gangs import cut_gangs
from rlserve.rollout.config import RolloutConfig

ONE = {"slots": [{"type": "cpu", "count": 1}]}


def problems_of_sft(algorithm: str = "sft", **parts: Any) -> list[str]:
    return problems_of(**{"reward": {}, "algorithm": {"name": algorithm}, "pool": ONE, **parts})


@pytest.mark.parametrize("name", ["conf/sft.yaml", "conf/reward_model.yaml", "conf/rlhf_reward_model.yaml"])
def test_the_configurations_that_come_along_can_be_launched(name: str) -> None:
    config = load(name, ["model.path=a/b", "data.path=a/b"], discovered={}).config
    assert config.algorithm.needs.rollouts == (name == "conf/rlhf_reward_model.yaml")


def test_the_first_supervised_run_needs_no_data_of_ones_own() -> None:
    assert load("conf/sft.yaml", discovered={}).config.data.path == "builtin:addition"


def test_one_slot_is_enough_and_all_train() -> None:
    config = config_of(reward={}, algorithm={"name": "sft"}, pool=ONE)
    assert problems_of_sft() == []
    assert config.pool.slots != "auto"
    assert first_roles(config, cut_gangs(config.pool.slots, 1).gangs) == {"cpu/0": Role.TRAIN}
    assert render_split(config, {}) == "slots: 1 cpu; all of them train\n"
    assert config.deciding.policy == "static"


@pytest.mark.parametrize(
    ("parts", "problem"),
    [
        ({"rollout": {"max_tokens": 9}}, "rollout.max_tokens: has no effect with algorithm.name=sft, which generates "
         "nothing: leave it out, got 9"),
        ({"rollout": {"engine": {"block_size": 8}}}, "rollout.engine.block_size: has no effect with"),
        ({"reward": {"function": "m:f"}}, "reward.function: has no effect with"),
        ({"weights": {"transport": "nccl"}}, "weights.transport: has no effect with"),
        ({"environment": {"name": "m:E"}}, "environment.name: has no effect with"),
        ({"evaluation": {"temperature": 1.0}}, "evaluation.temperature: has no effect with"),
        ({"pool": {**ONE, "placement": "colocated"}}, "pool.placement: has no effect with"),
        ({"pool": {"slots": PACED}}, "pool.slots: slots that stand for others (paced) are not for algorithm.name=sft"),
        ({"data": {"path": "a/b", "chosen_field": "better"}},
         "data.chosen_field: has no effect with algorithm.name=sft: it is for algorithm.name=reward_model, got "
         "'better'"),
    ],
)  # fmt: skip
def test_what_has_no_effect_is_refused(parts: dict[str, Any], problem: str) -> None:
    assert any(found.startswith(problem) for found in problems_of_sft(**parts)), problems_of_sft(**parts)


def test_columns_of_data_sets_are_refused_where_answers_are_generated() -> None:
    (problem,) = problems_of(data={"path": "a/b", "completion_field": "text"})
    assert problem == (
        "data.completion_field: has no effect with algorithm.name=ppo: it is for algorithm.name=sft, got 'text'"
    )


@pytest.mark.parametrize(
    ("trainer", "problem"),
    [
        (
            {"backend": "deepspeed"},
            "trainer.backend: must be 'torch' with algorithm.name=reward_model, got 'deepspeed'; no ",
        ),
        ({"sharding": "full"}, "trainer.sharding: must be 'optimizer' with algorithm.name=reward_model"),
        ({"deterministic": True}, "trainer.deterministic: must be false with algorithm.name=reward_model, got true"),
    ],
)
def test_a_reward_model_is_trained_by_one_backend(trainer: dict[str, Any], problem: str) -> None:
    (found,) = problems_of_sft("reward_model", trainer=trainer)
    assert found.startswith(problem)
    assert problems_of_sft("sft", trainer=trainer) == [], "the others learn completions"
    assert problems_of_sft("reward_model", trainer={"lora": {"rank": 4}}) == []


def test_a_run_of_rewards_needs_two_slots() -> None:
    (problem,) = problems_of(pool=ONE)
    assert problem == (
        "pool.slots: must hold at least 2 slots: one to train and one to roll out; or take pool.placement=colocated, "
        "got 1"
    )


def test_over_a_run_with_rewards_what_its_groups_say_of_generating_goes_and_what_the_user_says_is_refused() -> None:
    config = load("conf/rlhf.yaml", ["algorithm=sft"], discovered={}).config
    assert config.rollout == RolloutConfig()
    assert not config.reward.is_named
    with pytest.raises(ConfigurationError, match=r"override: rollout\.max_tokens: has no effect .*got 96"):
        load("conf/rlhf.yaml", ["algorithm=sft", "rollout.max_tokens=96"], discovered={})
