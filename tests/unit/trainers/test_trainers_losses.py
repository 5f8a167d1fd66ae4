"""The losses, number by number."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from policy_samples import random_tokens, slopes

from rlserve.errors import ConfigurationError
from rlserve.trainers import GRPOConfig, PPOConfig
from rlserve.trainers.algorithms.losses.value import clipped_value_loss
from rlserve.trainers.algorithms.losses.vanilla import clipped_surrogate, vanilla


def log_of(*ratios: float) -> torch.Tensor:
    return torch.tensor([math.log(ratio) for ratio in ratios])


def test_policy_loss_is_clipped_only_where_the_ratio_has_gone_the_way_of_the_advantage() -> None:
    log_probs = log_of(1.5, 1.5, 0.5, 0.5, 1.1).requires_grad_()
    advantages = torch.tensor([1.0, -1.0, 1.0, -1.0, 2.0])
    term = clipped_surrogate(log_probs.exp(), advantages, PPOConfig())
    torch.testing.assert_close(term.per_token, torch.tensor([-1.2, 1.5, -0.5, 0.8, -2.2]))
    assert term.is_clipped.tolist() == [True, False, False, True, False]
    term.per_token.sum().backward()
    torch.testing.assert_close(log_probs.grad, torch.tensor([0.0, 1.5, -0.5, 0.0, -2.2]))


def test_each_way_has_its_own_bound() -> None:
    config = GRPOConfig(clip_ratio_low=0.1, clip_ratio_high=0.4)
    term = clipped_surrogate(torch.tensor([1.5, 1.3, 0.95, 0.5]), torch.tensor([1.0, 1.0, -1.0, -1.0]), config)
    torch.testing.assert_close(term.per_token, torch.tensor([-1.4, -1.3, 0.95, 0.9]))
    assert term.is_clipped.tolist() == [True, False, False, True]


def two_sided_clip(ratios: np.ndarray, gains: np.ndarray, low: float, high: float, delta: float) -> np.ndarray:
    """INTELLECT-2 (arXiv 2505.07291), equation 1, negated."""
    return -np.minimum(np.minimum(ratios, delta) * gains, np.clip(ratios, 1 - low, 1 + high) * gains)


def dual_clip(ratios: np.ndarray, gains: np.ndarray, low: float, high: float, bound: float) -> np.ndarray:
    """Ye et al. 2019 (arXiv 1912.09729), equation 5, negated."""
    plain = np.minimum(ratios * gains, np.clip(ratios, 1 - low, 1 + high) * gains)
    return -np.where(gains < 0, np.maximum(plain, bound * gains), plain)


@pytest.mark.parametrize("closed_form", [two_sided_clip, dual_clip])
def test_the_bound_for_negative_advantages_is_the_dual_and_the_two_sided_clip(closed_form: object) -> None:
    config = GRPOConfig(clip_ratio_low=0.2, clip_ratio_high=0.28, clip_ratio_c=1.5)
    tokens = random_tokens([400], spread=1.0)
    term = vanilla(tokens, config)
    term.per_token.sum().backward()
    gains = tokens.advantages.numpy()

    def expected(log_probs: np.ndarray) -> np.ndarray:
        return closed_form(np.exp(log_probs - tokens.old_log_probs.numpy()), gains, 0.2, 0.28, 1.5)  # type: ignore[operator]

    log_probs = tokens.log_probs.detach().numpy()
    np.testing.assert_allclose(term.per_token.detach(), expected(log_probs), atol=1e-12)
    np.testing.assert_allclose(tokens.log_probs.grad, slopes(expected, log_probs), atol=1e-7)
    np.testing.assert_array_equal(term.is_clipped, tokens.log_probs.grad == 0)
    assert 0.2 < float(term.is_clipped.double().mean()) < 0.8
    unbounded = vanilla(tokens, GRPOConfig(clip_ratio_low=0.2, clip_ratio_high=0.28)).per_token
    assert float((unbounded > term.per_token).double().mean()) > 0.05


def test_a_bound_within_the_clipped_interval_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"clip_ratio_c: must be null or above 1 \+ clip_ratio_high \(1.28\)"):
        GRPOConfig(clip_ratio_high=0.28, clip_ratio_c=1.2)


def test_value_loss_takes_the_larger_of_plain_and_clipped_error() -> None:
    values = torch.tensor([0.5, 0.5, 0.1]).requires_grad_()
    term = clipped_value_loss(values, torch.zeros(3), torch.tensor([1.0, 0.0, 1.0]), value_clip=0.2)
    torch.testing.assert_close(term.per_token, torch.tensor([0.32, 0.125, 0.405]))
    assert term.is_clipped.tolist() == [True, False, False]
    term.per_token.sum().backward()
    torch.testing.assert_close(values.grad, torch.tensor([0.0, 0.5, -0.9]))
