"""Metrics of a step: the KL divergence by two estimates."""

from __future__ import annotations

import numpy as np
import pytest

from rlserve.trainers.backends.base import Scores
from rlserve.trainers.metrics import reference_metrics


def scores(log_probs: np.ndarray, reference: np.ndarray | None) -> Scores:
    policy = log_probs.astype(np.float32)
    reference = None if reference is None else reference.astype(np.float32)
    return Scores(values=policy, log_probs=policy, raw_log_probs=policy, reference_log_probs=reference)


def test_both_estimates_come_to_the_kl_of_what_is_drawn_from_all_tokens() -> None:
    rng = np.random.default_rng(0)
    policy, reference = np.array([0.5, 0.3, 0.2]), np.array([0.2, 0.3, 0.5])
    drawn = rng.choice(3, size=200_000, p=policy)
    found = reference_metrics(scores(np.log(policy)[drawn], np.log(reference)[drawn]))
    exact = float((policy * np.log(policy / reference)).sum())
    assert found["critic/kl"] == pytest.approx(exact, rel=0.02)
    assert found["critic/kl_k3"] == pytest.approx(exact, rel=0.02)


def test_k3_is_never_negative_and_stays_finite() -> None:
    likelier_by_reference = reference_metrics(scores(np.array([-2.0, -500.0]), np.array([-1.0, -0.1])))
    assert likelier_by_reference["critic/kl"] < 0.0
    assert 0.0 < likelier_by_reference["critic/kl_k3"] < np.inf
    assert reference_metrics(scores(np.array([-2.0]), None)) == {}
