"""Which backend a configuration names."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from rlserve.trainers.backends.base import Backend, Networks
from rlserve.trainers.backends.config import DeepSpeedTrainerConfig, TorchTrainerConfig, TrainerConfig
from rlserve.trainers.backends.pytorch.backend import TorchBackend

if TYPE_CHECKING:
    from rlserve.trainers.backends.fully_sharded.backend import FullyShardedBackend


def create_backend(
    config: TrainerConfig,
    networks: Networks,
    *,
    model_path: str,
    seed: int,
    temperature: float,
    device: torch.device,
    load_weights: bool,
) -> Backend:
    """One rank of the backend of this configuration; for the arguments see ``create_trainer``."""
    match config:
        case TorchTrainerConfig():
            backend = TorchBackend if config.sharding == "optimizer" else _fully_sharded()
            return backend(
                config,
                networks,
                model_path=model_path,
                seed=seed,
                temperature=temperature,
                device=device,
                load_weights=load_weights,
            )
        case DeepSpeedTrainerConfig():
            from rlserve.trainers.backends.deepspeed.backend import DeepSpeedBackend  # an extra

            return DeepSpeedBackend(
                config,
                networks,
                model_path=model_path,
                seed=seed,
                temperature=temperature,
                device=device,
                load_weights=load_weights,
            )


def _fully_sharded() -> type[FullyShardedBackend]:
    from rlserve.trainers.backends.fully_sharded.backend import FullyShardedBackend  # loads much of torch.distributed

    return FullyShardedBackend
