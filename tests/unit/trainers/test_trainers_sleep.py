"""A trainer whose state has been on another device steps on as if it had not: here both are the CPU's memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from trainer_samples import random_batch, save_tiny_model

from rlserve.trainers import TorchTrainerConfig, create_trainer
from rlserve.trainers.algorithms.config import PPOConfig

CPU = torch.device("cpu")


def make(model: str) -> Any:
    return create_trainer(
        TorchTrainerConfig(learning_rate=0.01),
        PPOConfig(kl_coefficient=0.1),
        model_path=model,
        seed=0,
        temperature=1.0,
        device="cpu",
        load_weights=True,
    )


def test_state_that_was_moved_goes_on_with_the_same_bits(tmp_path: Path) -> None:
    model = save_tiny_model(tmp_path)
    moved, stayed = make(model), make(model)
    state = moved._backend._state
    for seed in range(3):
        before = state.flat.vector
        state.move(CPU)
        assert state.flat.vector.data_ptr() != before.data_ptr()
        before.fill_(7.0)  # whatever still looked at it would show
        moved.step(random_batch(seed))
        stayed.step(random_batch(seed))
    first, second = moved.state(), stayed.state()
    assert any(name.startswith("reference.") for name in second)
    assert all(torch.equal(first[name], tensor) for name, tensor in second.items())
