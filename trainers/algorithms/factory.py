"""Which algorithm a configuration names."""

from __future__ import annotations

from rlserve.trainers.algorithms.base import Algorithm
from rlserve.trainers.algorithms.config import (
    AlgorithmConfig,
    GRPOConfig,
    OPOConfig,
    PPOConfig,
    ReinforcePlusPlusBaselineConfig,
    ReinforcePlusPlusConfig,
    ReMaxConfig,
    RLOOConfig,
)
from rlserve.trainers.algorithms.grpo import GRPO
from rlserve.trainers.algorithms.opo import OPO
from rlserve.trainers.algorithms.ppo import PPO
from rlserve.trainers.algorithms.reinforce_plus_plus import ReinforcePlusPlus
from rlserve.trainers.algorithms.reinforce_plus_plus_baseline import ReinforcePlusPlusBaseline
from rlserve.trainers.algorithms.remax import ReMax
from rlserve.trainers.algorithms.rloo import RLOO
from rlserve.trainers.algorithms.supervised.config import RewardModelConfig, SFTConfig
from rlserve.trainers.algorithms.supervised.reward_model import RewardModel
from rlserve.trainers.algorithms.supervised.sft import SFT


def create_algorithm(config: AlgorithmConfig) -> Algorithm:
    """The algorithm of this configuration."""
    match config:
        case PPOConfig():
            return PPO(config)
        case GRPOConfig():
            return GRPO(config)
        case RLOOConfig():
            return RLOO(config)
        case ReMaxConfig():
            return ReMax(config)
        case OPOConfig():
            return OPO(config)
        case ReinforcePlusPlusConfig():
            return ReinforcePlusPlus(config)
        case ReinforcePlusPlusBaselineConfig():
            return ReinforcePlusPlusBaseline(config)
        case SFTConfig():
            return SFT(config)
        case RewardModelConfig():
            return RewardModel(config)
