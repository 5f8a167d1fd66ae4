"""Training: algorithms on backends, data-parallel, elastic at step boundaries. Usable alone as a library.

Names are resolved on first use, so that importing a configuration does not import torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
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
    from rlserve.trainers.algorithms.rollout_correction.config import RolloutCorrectionConfig
    from rlserve.trainers.algorithms.supervised.config import RewardModelConfig, SFTConfig
    from rlserve.trainers.backends.config import (
        DeepSpeedTrainerConfig,
        LoraConfig,
        TorchTrainerConfig,
        TrainerConfig,
    )
    from rlserve.trainers.base import Membership, Traffic, Trainer
    from rlserve.trainers.batch import Batch
    from rlserve.trainers.factory import create_trainer

__all__ = [
    "AlgorithmConfig",
    "Batch",
    "DeepSpeedTrainerConfig",
    "GRPOConfig",
    "LoraConfig",
    "Membership",
    "OPOConfig",
    "PPOConfig",
    "RLOOConfig",
    "ReMaxConfig",
    "ReinforcePlusPlusBaselineConfig",
    "ReinforcePlusPlusConfig",
    "RewardModelConfig",
    "RolloutCorrectionConfig",
    "SFTConfig",
    "TorchTrainerConfig",
    "Traffic",
    "Trainer",
    "TrainerConfig",
    "create_trainer",
]

_HOMES = {
    "AlgorithmConfig": "algorithms.config",
    "Batch": "batch",
    "DeepSpeedTrainerConfig": "backends.config",
    "GRPOConfig": "algorithms.config",
    "LoraConfig": "backends.config",
    "Membership": "base",
    "OPOConfig": "algorithms.config",
    "PPOConfig": "algorithms.config",
    "RLOOConfig": "algorithms.config",
    "ReMaxConfig": "algorithms.config",
    "RolloutCorrectionConfig": "algorithms.rollout_correction.config",
    "ReinforcePlusPlusBaselineConfig": "algorithms.config",
    "ReinforcePlusPlusConfig": "algorithms.config",
    "RewardModelConfig": "algorithms.supervised.config",
    "SFTConfig": "algorithms.supervised.config",
    "TorchTrainerConfig": "backends.config",
    "Traffic": "base",
    "Trainer": "base",
    "TrainerConfig": "backends.config",
    "create_trainer": "factory",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
