"""The guarantee that a loss gets all trained tokens of a sample together, and a loss that needs it."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from trainer_samples import random_batch

from rlserve.trainers import Batch, GRPOConfig, TorchTrainerConfig, create_trainer
from rlserve.trainers.algorithms.whole_samples import over_samples
from rlserve.trainers.backends.base import Backend, Losses, Networks, PolicyOutputs
from rlserve.trainers.backends.factory import create_backend
from rlserve.trainers.backends.pytorch import head

CONFIGS = {
    "padded": TorchTrainerConfig(kernels="torch", num_logical_shards=3, ppo_max_token_len_per_gpu=60),
    "packed": TorchTrainerConfig(kernels="native", num_logical_shards=3, ppo_max_token_len_per_gpu=60),
    "fully-sharded": TorchTrainerConfig(kernels="torch", sharding="full", ppo_max_token_len_per_gpu=60),
}


@pytest.fixture(autouse=True)
def rows_go_through_the_head_three_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head, "_CHUNK_ELEMENTS", 1)
    monkeypatch.setattr(head, "_CHUNK_ROWS", 3)


def backend_of(config: TorchTrainerConfig, model_path: str) -> Backend:
    return create_backend(
        config,
        Networks(critic=False, reference=False),
        model_path=model_path,
        seed=0,
        temperature=0.9,
        device=torch.device("cpu"),
        load_weights=True,
    )


def batch_with_untrained_tokens() -> Batch:
    batch = random_batch(0, num_samples=9)
    is_trained = np.ones(batch.num_response_tokens, dtype=bool)
    is_trained[1::4] = False
    is_trained[batch.response_starts] = True
    return dataclasses.replace(batch, loss_mask=is_trained)


def parts_of(backend: Backend, batch: Batch, *, of_whole_samples: bool, with_entropies: bool = True) -> list[Tensor]:
    """The tokens that come to the loss together, call by call."""
    parts: list[Tensor] = []

    def loss(tokens: Tensor, outputs: PolicyOutputs) -> Tensor:
        parts.append(tokens)
        assert outputs.log_probs.shape == tokens.shape
        assert (outputs.entropies is not None) == with_entropies
        return outputs.log_probs.sum()

    losses = Losses(policy=loss, value=None, with_entropies=with_entropies, of_whole_samples=of_whole_samples)
    backend.begin_step()
    backend.compute_gradient(batch, np.arange(batch.num_samples), losses, completes_step=True)
    return parts


@pytest.mark.parametrize("name", CONFIGS)
def test_the_tokens_of_a_sample_come_together_and_one_after_the_other(name: str, model_path: str) -> None:
    batch = batch_with_untrained_tokens()
    parts = parts_of(backend_of(CONFIGS[name], model_path), batch, of_whole_samples=True)
    assert len(parts) > 1
    of_samples = [batch.tokens_of(np.array([sample])).tolist() for sample in range(batch.num_samples)]
    seen = []
    for part in parts:
        left = part.tolist()
        while left:
            (sample,) = [number for number, tokens in enumerate(of_samples) if tokens[0] == left[0]]
            assert left[: len(of_samples[sample])] == of_samples[sample]
            left = left[len(of_samples[sample]) :]
            seen.append(sample)
    assert sorted(seen) == list(range(batch.num_samples))


@pytest.mark.parametrize("name", CONFIGS)
def test_without_the_guarantee_samples_are_cut(name: str, model_path: str) -> None:
    parts = parts_of(backend_of(CONFIGS[name], model_path), random_batch(0, num_samples=9), of_whole_samples=False)
    assert max(len(part) for part in parts) <= 3


@pytest.mark.parametrize("loss_mode", ["gspo", "geo_mean"])
@pytest.mark.parametrize("name", CONFIGS)
def test_how_rows_go_through_the_head_changes_no_gradient(
    name: str, loss_mode: Any, model_path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    algorithm = GRPOConfig(
        loss_mode=loss_mode, num_mini_batches=2, entropy_coefficient=0.1, clip_ratio_low=0.01, clip_ratio_high=0.01
    )

    def metrics() -> list[dict[str, float]]:
        config = dataclasses.replace(CONFIGS[name], learning_rate=1e-2)
        trainer = create_trainer(config, algorithm, model_path=model_path, seed=0)
        return [trainer.step(random_batch(seed, num_samples=9)) for seed in range(2)]

    in_parts = metrics()
    monkeypatch.setattr(head, "_CHUNK_ROWS", 1024)
    monkeypatch.setattr(head, "_CHUNK_ELEMENTS", 2**22)
    for found, expected in zip(in_parts, metrics(), strict=True):
        assert found == pytest.approx(expected, rel=2e-4, abs=1e-6)
        assert found["actor/grad_norm"] > 0
    assert in_parts[1]["actor/pg_clipfrac"] > 0


def test_means_are_of_samples_and_send_their_gradient_to_all_tokens() -> None:
    per_token = torch.tensor([1.0, 3.0, 5.0, 7.0, 9.0], requires_grad=True)
    means = over_samples("mean", per_token, torch.tensor([8, 8, 2, 5, 5]))
    assert means.tolist() == [2.0, 2.0, 5.0, 8.0, 8.0]
    (means * torch.tensor([1.0, 0.0, 10.0, 0.0, 4.0])).sum().backward()
    assert per_token.grad is not None
    assert per_token.grad.tolist() == [0.5, 0.5, 10.0, 2.0, 2.0]
