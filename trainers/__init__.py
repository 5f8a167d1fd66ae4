"""Training: PPO with a critic, data-parallel, elastic at step boundaries. Usable alone as a library.

Names are resolved on first use, so that importing a configuration does not import torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rlserve.trainers.base import Membership, Trainer
    from rlserve.trainers.batch import Batch
    from rlserve.trainers.config import AlgorithmConfig, TrainerConfig
    from rlserve.trainers.factory import create_trainer

__all__ = ["AlgorithmConfig", "Batch", "Membership", "Trainer", "TrainerConfig", "create_trainer"]

_HOMES = {
    "AlgorithmConfig": "config",
    "Batch": "batch",
    "Membership": "base",
    "Trainer": "base",
    "TrainerConfig": "config",
    "create_trainer": "factory",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
