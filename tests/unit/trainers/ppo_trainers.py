"""PPO trainers on one rank, and what compares their states."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from rlserve.trainers import PPOConfig, TorchTrainerConfig, Trainer, create_trainer


def make_trainer(
    model_path: str, algorithm: PPOConfig | None = None, temperature: float = 1.0, **config: Any
) -> Trainer:
    fields = {"learning_rate": 1e-3, "critic_learning_rate": 1e-2, "num_logical_shards": 5, **config}
    return create_trainer(
        TorchTrainerConfig(**fields), algorithm or PPOConfig(), model_path=model_path, seed=0, temperature=temperature
    )


def copy_of(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in state.items()}


def assert_same_bits(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []
