"""Metrics of a step: the KL divergence by two estimates."""

from __future__ import annotations

import numpy as np
import pytest

from rlserve.trainers.metrics import reference_metrics


def kl_of(log_probs: np.ndarray, reference: np.ndarray) -> dict[str, float]:
    return reference_metrics(log_probs.astype(np.float32), reference.astype(np.float32))


def test_both_estimates_come_to_the_kl_of_what_is_drawn_from_all_tokens() -> None:
    rng = np.random.default_rng(0)
    policy, reference = np.array([0.5, 0.3, 0.2]), np.array([0.2, 0.3, 0.5])
    drawn = rng.choice(3, size=200_000, p=policy)
    found = kl_of(np.log(policy)[drawn], np.log(reference)[drawn])
    exact = float((policy * np.log(policy / reference)).sum())
    assert found["critic/kl"] == pytest.approx(exact, rel=0.02)
    assert found["critic/kl_k3"] == pytest.approx(exact, rel=0.02)


def test_k3_is_never_negative_and_stays_finite() -> None:
    likelier_by_reference = kl_of(np.array([-2.0, -500.0]), np.array([-1.0, -0.1]))
    assert likelier_by_reference["critic/kl"] < 0.0
    assert 0.0 < likelier_by_reference["critic/kl_k3"] < np.inf
    assert reference_metrics(np.zeros(1, dtype=np.float32), None) == {}


def test_kl_of_draws_that_were_restricted_is_negative_and_k3_is_not() -> None:
    """Draws from tokens that the reference likes better than the policy does, by ratios of 2 and 4."""
    found = kl_of(np.log(np.array([0.4, 0.2])), np.log(np.array([0.8, 0.8])))
    ratios = np.array([2.0, 4.0])
    assert found["critic/kl"] == pytest.approx(-np.log(ratios).mean())
    assert found["critic/kl_k3"] == pytest.approx((ratios - 1 - np.log(ratios)).mean())
