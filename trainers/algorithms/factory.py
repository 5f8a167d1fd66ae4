"""Which algorithm a configuration names."""

from __future__ import annotations

from rlserve.trainers.algorithms.base import Algorithm
from rlserve.trainers.algorithms.config import AlgorithmConfig, GRPOConfig, PPOConfig
from rlserve.trainers.algorithms.grpo import GRPO
from rlserve.trainers.algorithms.ppo import PPO


def create_algorithm(config: AlgorithmConfig) -> Algorithm:
    """The algorithm of this configuration."""
    match config:
        case PPOConfig():
            return PPO(config)
        case GRPOConfig():
            return GRPO(config)
