"""Makes the reward that the configuration names."""

from __future__ import annotations

from rlserve.rollout.config import RewardConfig
from rlserve.rollout.rewards.base import Reward
from rlserve.rollout.rewards.function import FunctionReward, find_function
from rlserve.rollout.rewards.model import ModelReward, check_model


def create_reward(config: RewardConfig) -> Reward:
    """The reward, ready to score in this process.

    Raises:
        RewardError: it cannot be found or loaded.
    """
    if config.function is not None:
        return FunctionReward(config.function)
    assert config.model_path is not None, "the configuration names one of the two"
    return ModelReward(config.model_path)


def check_reward(config: RewardConfig) -> None:
    """Find the reward early, before any process is started, without loading a model's weights.

    Raises:
        RewardError: it cannot be found.
    """
    if config.function is not None:
        find_function(config.function)
    elif config.model_path is not None:
        check_model(config.model_path)
