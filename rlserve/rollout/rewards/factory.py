"""Makes the reward that the configuration names."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from rlserve.rollout.config import RewardConfig
from rlserve.rollout.rewards.base import Reward
from rlserve.rollout.rewards.function import FunctionReward
from rlserve.rollout.rewards.function_loading import add_to_path
from rlserve.rollout.rewards.model import ModelReward, check_model, has_chat_template


def create_reward(config: RewardConfig) -> Reward:
    """The reward, ready to score in this process.

    Raises:
        RewardError: it cannot be found or loaded.
    """
    return ModelReward(config) if config.function is None else create_function(config)


def create_function(config: RewardConfig) -> FunctionReward:
    """The reward function, imported into this process.

    Raises:
        RewardError: it cannot be found or loaded.
    """
    assert config.function is not None, "the reward is a function"
    if config.module_folder is not None:
        add_to_path(Path(config.module_folder))
    return FunctionReward(config.function)


def check_reward_model(config: RewardConfig, *, policy_has_template: bool) -> RewardConfig:
    """Look at a reward model early, before any process is started, without loading its weights.

    Returns the configuration with ``apply_chat_template`` decided; one of a reward function as it is.

    Raises:
        RewardError: the model cannot be found, or cannot be used.
    """
    if config.model_path is None:
        return config
    check_model(config)
    if config.apply_chat_template is not None:
        return config
    return replace(config, apply_chat_template=policy_has_template and has_chat_template(config))
