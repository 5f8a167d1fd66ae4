"""Log-probabilities of given tokens against those that the sampler reports of its draws."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from rlserve.engine.kernels.base import SamplingBatch
from rlserve.engine.kernels.cpu_kernels import CpuKernels
from rlserve.native.target_log_probs import target_log_probs


def sampling_batch(num_rows: int, temperature: float) -> SamplingBatch:
    return SamplingBatch(
        logits_row=np.arange(num_rows, dtype=np.int32),
        temperature=np.full(num_rows, temperature, dtype=np.float32),
        top_k=np.zeros(num_rows, dtype=np.int32),
        top_p=np.ones(num_rows, dtype=np.float32),
        min_p=np.zeros(num_rows, dtype=np.float32),
        uniform=np.random.default_rng(0).random(num_rows),
    )


@pytest.mark.parametrize("vocab_size", [17, 256, 1003])
@pytest.mark.parametrize("temperature", [1.0, 0.7, 1.3])
def test_given_tokens_score_to_the_bit_as_drawn_ones(vocab_size: int, temperature: float) -> None:
    logits = 5 * torch.randn(64, vocab_size, generator=torch.Generator().manual_seed(0))
    drawn = CpuKernels().sample(logits, sampling_batch(len(logits), temperature))
    targets = torch.from_numpy(drawn.token_ids.astype(np.int64))

    assert np.array_equal(target_log_probs(logits, targets, 1.0).numpy(), drawn.log_probs)
    assert np.array_equal(target_log_probs(logits, targets, temperature).numpy(), drawn.behaviour_log_probs)


def test_the_scores_are_those_of_float64() -> None:
    logits = 5 * torch.randn(64, 1003, generator=torch.Generator().manual_seed(0))
    targets = torch.arange(64)
    expected = (logits.double() / 0.7).log_softmax(-1).gather(-1, targets[:, None])[:, 0]
    assert torch.allclose(target_log_probs(logits, targets, 0.7).double(), expected, atol=1e-5)


def test_a_token_too_unlikely_to_be_drawn_has_a_finite_score() -> None:
    logits = torch.zeros(1, 20)
    logits[0, 3] = -500.0
    score = target_log_probs(logits, torch.tensor([3]), 1.0)
    assert score.item() == pytest.approx(-500 - np.log(19))
