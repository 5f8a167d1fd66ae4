"""The small Triton programs against plain PyTorch."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from triton_device import DEVICE

from rlserve.engine.kernels import triton_kernels
from rlserve.engine.kernels.base import SamplingBatch
from rlserve.engine.kernels.torch_kernels import TorchKernels
from rlserve.engine.kernels.triton_kernels import TritonKernels

REFERENCE, TRITON = TorchKernels(), TritonKernels()


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_kernels, "_CHUNK", 16)
    monkeypatch.setattr(triton_kernels, "_ACTIVATION_BLOCK", 16)


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE)


def make_batch(rows: list[int], temperatures: list[float], uniforms: list[float], **changes: object) -> SamplingBatch:
    return SamplingBatch(
        logits_row=np.array(rows, dtype=np.int32),
        temperature=np.array(temperatures, dtype=np.float32),
        uniform=np.array(uniforms),
        **{
            "top_k": np.zeros(len(rows), dtype=np.int32),
            "top_p": np.ones(len(rows), dtype=np.float32),
            "min_p": np.zeros(len(rows), dtype=np.float32),
            **changes,  # type: ignore[arg-type]
        },
    )


@pytest.mark.parametrize("offset", [0.0, 1.0])
def test_norms(offset: float) -> None:
    for size in (1, 20, 64):
        residual, update, weight = random(3, size), random(3, size, seed=1), random(size, seed=2)
        expected_residual, expected, found = residual.clone(), torch.empty(3, size).to(DEVICE), random(3, size)
        REFERENCE.rms_norm(residual, weight, expected, 1e-6, offset)
        TRITON.rms_norm(residual, weight, found, 1e-6, offset)
        torch.testing.assert_close(found, expected)
        REFERENCE.add_rms_norm(expected_residual, update, weight, expected, 1e-6, offset)
        TRITON.add_rms_norm(residual, update, weight, found, 1e-6, offset)
        torch.testing.assert_close(residual, expected_residual, rtol=0, atol=0)
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("name", ["silu_mul", "gelu_tanh_mul"])
def test_gated_activations(name: str) -> None:
    for size in (1, 16, 37):
        gate_up = 5 * random(2, 2 * size)
        expected, found = torch.empty(2, 2, size).to(DEVICE)
        getattr(REFERENCE, name)(gate_up, expected)
        getattr(TRITON, name)(gate_up, found)
        torch.testing.assert_close(found, expected, atol=2e-6, rtol=1e-5)


def test_draws_equal_those_of_pytorch() -> None:
    logits = 2 * random(3, 50)
    rows = [0, 2, 1, 1, 0, 2, 2, 0]
    batch = make_batch(rows, [1.0, 0.0, 0.5, 2.0, 0.0, 1.0, 0.1, 1.0], [0.3, 0.5, 0.9, 0.02, 0.1, 0.999, 0.5, 0.6])
    found, expected = TRITON.sample(logits, batch), REFERENCE.sample(logits, batch)
    assert found.token_ids.tolist() == expected.token_ids.tolist()
    np.testing.assert_allclose(found.log_probs, expected.log_probs, atol=1e-5)
    np.testing.assert_allclose(found.behaviour_log_probs, expected.behaviour_log_probs, atol=1e-5)


def test_draws_follow_the_distribution() -> None:
    """One logit of 40 stands alone in its chunk, two others share one."""
    logits = torch.full((1, 40), -torch.inf)
    logits[0, [3, 20, 21]] = torch.tensor([0.5, 0.2, 0.3]).log()
    uniforms = ((np.arange(20) + 0.5) / 20).tolist()
    sampled = TRITON.sample(logits.to(DEVICE), make_batch([0] * 20, [1.0] * 20, uniforms))
    assert Counter(sampled.token_ids.tolist()) == {3: 10, 20: 4, 21: 6}


def test_the_ends_of_the_distribution_draw_tokens_of_positive_probability() -> None:
    logits = random(1, 50)
    logits[0, :7] = logits[0, 30:] = -torch.inf
    sampled = TRITON.sample(logits, make_batch([0, 0], [1.0, 1.0], [2.0**-54, 1 - 2.0**-54]))
    assert sampled.token_ids.tolist() == [7, 29]
    assert np.isfinite(sampled.log_probs).all()


def test_ties_of_greedy_choices_go_to_the_first() -> None:
    logits = torch.zeros(1, 40, device=DEVICE)
    logits[0, [17, 18, 35]] = 3.0
    assert TRITON.sample(logits, make_batch([0], [0.0], [0.5])).token_ids.tolist() == [17]


@pytest.mark.parametrize("broken", [torch.nan, torch.inf])
def test_broken_logits_show_in_the_log_probability_and_break_no_other_row(broken: float) -> None:
    logits = random(2, 40)
    logits[0, 20] = broken
    sampled = TRITON.sample(logits, make_batch([0, 1], [1.0, 1.0], [0.5, 0.5]))
    assert not np.isfinite(sampled.log_probs[0])
    assert np.isfinite(sampled.log_probs[1])
    assert ((sampled.token_ids >= 0) & (sampled.token_ids < 40)).all()


def test_rows_that_keep_the_likeliest_alone_are_sorted_by_pytorch() -> None:
    logits = random(2, 40)
    batch = make_batch([0, 1], [1.0, 1.0], [0.999, 0.4], top_k=np.array([1, 0], dtype=np.int32))
    found, expected = TRITON.sample(logits, batch), REFERENCE.sample(logits, batch)
    assert found.token_ids.tolist() == expected.token_ids.tolist()
    assert found.token_ids[0] == int(logits[0].argmax())
