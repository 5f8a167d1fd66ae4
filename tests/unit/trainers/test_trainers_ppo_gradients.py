"""The gradients of PPO's first update, against a plain reference."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from plain_ppo import PlainPPO
from ppo_trainers import make_trainer
from trainer_samples import random_batch, save_tiny_model

from rlserve.trainers import PPOConfig


@pytest.mark.parametrize(
    ("algorithm", "temperature"),
    [
        (PPOConfig(), 1.0),
        (PPOConfig(kl_coefficient=0.3, entropy_coefficient=0.02, gamma=0.9, gae_lambda=0.8), 1.0),
        (PPOConfig(kl_coefficient=0.1, entropy_coefficient=0.1, value_coefficient=2.0), 0.7),
    ],
    ids=["default", "kl-entropy", "temperature"],
)
def test_gradients_equal_a_plain_reference(tmp_path: Path, algorithm: PPOConfig, temperature: float) -> None:
    # Weights of an ordinary size: with the large ones of the other tests, float32 rounding alone comes to 1e-6.
    model_path = save_tiny_model(tmp_path, initializer_range=0.05)
    # With beta1 = 0 the first moment is the gradient itself, and nothing is clipped.
    trainer = make_trainer(model_path, algorithm, temperature, adam_beta1=0.0, max_grad_norm=1e9)
    trainer.step(random_batch(3))  # moves policy and critic away from where they began
    batch = random_batch(4)
    expected = PlainPPO(model_path, trainer, algorithm, temperature).gradients(batch)
    trainer.step(batch)
    state = trainer.state()
    for network in ("policy.", "critic."):
        names = [name for name in expected if name.startswith(network)]
        ours = torch.cat([state[f"first_moment.{name}"].flatten().double() for name in names])
        plain = torch.cat([expected[name].flatten() for name in names])
        assert float((ours - plain).norm() / plain.norm()) < 1e-6
