"""Estimates of the KL divergence against sums over a whole vocabulary."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from rlserve.trainers.algorithms.base import PolicyTokens
from rlserve.trainers.algorithms.config import GRPOConfig, KLEstimator
from rlserve.trainers.algorithms.grpo import GRPO
from rlserve.trainers.algorithms.kl import kl_divergence


def distributions() -> tuple[torch.Tensor, np.ndarray]:
    """Logits of a policy over 50 tokens, and the reference's log-probabilities."""
    rng = np.random.default_rng(0)
    reference = 0.5 * rng.normal(size=50)
    return torch.tensor(0.5 * rng.normal(size=50), requires_grad=True), reference - np.log(np.exp(reference).sum())


def true_divergence(logits: np.ndarray, reference: np.ndarray) -> float:
    policy = np.exp(logits) / np.exp(logits).sum()
    return float((policy * (np.log(policy) - reference)).sum())


def expected_estimate(estimator: KLEstimator) -> tuple[float, torch.Tensor]:
    """Mean over the policy's own draws of an estimate, and of its gradient."""
    logits, reference = distributions()
    log_probs = logits.log_softmax(-1)
    draws = log_probs.detach().exp()  # the share of each token among the draws, which no gradient goes through
    mean = (draws * kl_divergence(log_probs, torch.tensor(reference), estimator)).sum()
    mean.backward()
    return mean.item(), logits.grad


@pytest.mark.parametrize(
    ("estimator", "is_unbiased"), [("k1", True), ("k3", True), ("k1+", True), ("k3+", True), ("k2", False)]
)
def test_the_mean_of_an_unbiased_estimate_is_the_divergence(estimator: KLEstimator, is_unbiased: bool) -> None:
    logits, reference = distributions()
    expected = true_divergence(logits.detach().numpy(), reference)
    assert (expected_estimate(estimator)[0] == pytest.approx(expected, rel=1e-9)) == is_unbiased


@pytest.mark.parametrize(
    ("estimator", "is_unbiased"), [("k2", True), ("k1+", True), ("k3+", True), ("k1", False), ("k3", False)]
)
def test_the_mean_gradient_of_k2_is_that_of_the_divergence(estimator: KLEstimator, is_unbiased: bool) -> None:
    logits, reference = distributions()
    at, step = logits.detach().numpy(), 1e-6
    expected = [
        (true_divergence(at + shift, reference) - true_divergence(at - shift, reference)) / (2 * step)
        for shift in step * np.eye(len(at))
    ]
    assert np.allclose(expected_estimate(estimator)[1], expected, atol=1e-8) == is_unbiased


def test_estimates_token_by_token_with_verls_clamps() -> None:
    difference = np.array([-30.0, -0.5, 0.0, 2.0, 30.0])
    log_probs, reference = torch.tensor(difference), torch.zeros(5, dtype=torch.float64)
    k3 = np.minimum(np.exp(np.clip(-difference, -20, 20)) - 1 - np.clip(-difference, -20, 20), 10.0)
    for estimator, expected in (("k1", difference), ("k2", difference**2 / 2), ("k3", k3), ("k3+", k3)):
        found = kl_divergence(log_probs, reference, estimator)  # type: ignore[arg-type]
        np.testing.assert_allclose(found, expected, atol=1e-12)


def test_times_the_ratio_the_gradient_of_k3_is_that_of_the_divergence_after_any_number_of_updates() -> None:
    """In the mean over what the old policy draws of five tokens, whatever the new policy is."""
    generator = torch.Generator().manual_seed(0)
    old, logits, reference = (torch.randn(5, generator=generator, dtype=torch.float64) for _ in range(3))
    logits.requires_grad_()
    old, reference = old.log_softmax(0), reference.log_softmax(0)

    def gradient(*, corrected: bool) -> torch.Tensor:
        tokens = PolicyTokens(
            log_probs=logits.log_softmax(0),
            old_log_probs=old,
            behaviour_log_probs=old,
            reference_log_probs=reference,
            advantages=torch.zeros(5, dtype=torch.float64),
            entropies=None,
            samples=torch.arange(5),
            is_selected=None,
        )
        config = GRPOConfig(kl_loss_coefficient=1.0, use_bias_correction_kl=corrected)
        (found,) = torch.autograd.grad((old.exp() * GRPO(config).policy_loss(tokens).per_token).sum(), logits)
        return found

    policy = logits.log_softmax(0)
    (expected,) = torch.autograd.grad((policy.exp() * (policy - reference)).sum(), logits)
    torch.testing.assert_close(gradient(corrected=True), expected)
    assert not torch.allclose(gradient(corrected=False), expected, atol=0.01)
