"""Makes the reward that the configuration names."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from rlserve.errors import RewardError
from rlserve.rollout.config import RewardConfig
from rlserve.rollout.rewards.base import Reward
from rlserve.rollout.rewards.code.reward import CodeReward
from rlserve.rollout.rewards.config import CODE, MATH_VERIFY, RewardPartConfig
from rlserve.rollout.rewards.function import FunctionReward
from rlserve.rollout.rewards.function_loading import add_to_path
from rlserve.rollout.rewards.http import HttpReward
from rlserve.rollout.rewards.math_verify import MathVerifyReward
from rlserve.rollout.rewards.model import ModelReward, check_model, has_chat_template
from rlserve.rollout.rewards.weighted_sum import Term, WeightedSum


def create_reward(config: RewardConfig) -> Reward:
    """The reward, ready to score in this process.

    Raises:
        RewardError: it cannot be found or loaded.
    """
    if config.parts:
        return WeightedSum({name: _create_term(config, name) for name in config.parts})
    if config.url is not None:
        return HttpReward(config.url, config.http, timeout_s=config.timeout_s)
    if config.function == CODE:
        return CodeReward(config.code)
    if config.function == MATH_VERIFY:
        return MathVerifyReward(config.math_verify)
    return ModelReward(config) if config.function is None else _create_function(config)


def check_reward_model(config: RewardConfig, *, policy_has_template: bool) -> RewardConfig:
    """Look at reward models early, before any process is started, without loading their weights.

    Returns the configuration with ``apply_chat_template`` of each model decided.

    Raises:
        RewardError: a model cannot be found, or cannot be used.
    """
    if config.parts:
        checked = {name: _check_part(config, name, policy_has_template) for name in config.parts}
        return replace(config, parts=checked)
    if config.model_path is None:
        return config
    check_model(config)
    if config.apply_chat_template is not None:
        return config
    return replace(config, apply_chat_template=policy_has_template and has_chat_template(config))


def _create_term(config: RewardConfig, name: str) -> Term:
    with _naming(name):
        return Term(reward=create_reward(config.of_part(name)), weight=config.parts[name].weight)


def _create_function(config: RewardConfig) -> FunctionReward:
    assert config.function is not None, "the reward is a function"
    if config.module_folder is not None:
        add_to_path(Path(config.module_folder))
    return FunctionReward(config.function)


def _check_part(config: RewardConfig, name: str, policy_has_template: bool) -> RewardPartConfig:
    with _naming(name):
        checked = check_reward_model(config.of_part(name), policy_has_template=policy_has_template)
    return replace(config.parts[name], apply_chat_template=checked.apply_chat_template)


@contextmanager
def _naming(part: str) -> Iterator[None]:
    """Lets an error say which part it is of."""
    try:
        yield
    except RewardError as error:
        raise RewardError(f"reward.parts.{part}: {error}") from error
