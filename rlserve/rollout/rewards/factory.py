"""Makes the reward that the configuration names."""

from __future__ import annotations

import sys

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
        _look_in(config.module_folder)
        return FunctionReward(config.function)
    assert config.model_path is not None, "the configuration names one of the two"
    return ModelReward(config.model_path)


def check_reward(config: RewardConfig) -> None:
    """Find the reward early, before any process is started, without loading a model's weights.

    Raises:
        RewardError: it cannot be found.
    """
    if config.function is not None:
        _look_in(config.module_folder)
        find_function(config.function)
    elif config.model_path is not None:
        check_model(config.model_path)


def _look_in(folder: str | None) -> None:
    """Let modules be imported from ``folder``, after all others."""
    if folder is not None and folder not in sys.path:
        sys.path.append(folder)
