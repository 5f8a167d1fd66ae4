"""Which tokens are treated apart for the entropy that they take."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from policy_samples import experience_of
from trainer_samples import random_batch

from rlserve.errors import ConfigurationError
from rlserve.trainers import GRPOConfig, TorchTrainerConfig, create_trainer
from rlserve.trainers.algorithms.advantages.covariance import covariances, drawn_between, largest
from rlserve.trainers.algorithms.grpo import GRPO

RNG = np.random.default_rng(0)
LOG_PROBS, GAINS = RNG.normal(size=(2, 1000))


def test_the_mean_is_the_covariance() -> None:
    assert covariances(LOG_PROBS, GAINS).mean() == pytest.approx(np.cov(LOG_PROBS, GAINS, ddof=0)[0, 1])


def test_the_change_of_entropy_of_a_softmax_is_minus_the_covariance() -> None:
    """For a small step of each logit by its token's advantage, over the whole distribution."""
    logits, gains, step = RNG.normal(size=20), RNG.normal(size=20), 1e-6

    def distribution(of: np.ndarray) -> np.ndarray:
        return np.exp(of) / np.exp(of).sum()

    def entropy(of: np.ndarray) -> float:
        return float(-(distribution(of) * np.log(distribution(of))).sum())

    probabilities = distribution(logits)
    log_probs = np.log(probabilities)
    covariance = (probabilities * log_probs * gains).sum() - (probabilities * log_probs).sum() * (
        probabilities * gains
    ).sum()
    assert (entropy(logits + step * gains) - entropy(logits)) / step == pytest.approx(-covariance, rel=1e-4)


@pytest.mark.parametrize(("share", "number"), [(0.05, 50), (1e-9, 1)])
def test_the_largest_are_chosen(share: float, number: int) -> None:
    found = covariances(LOG_PROBS, GAINS)
    chosen = largest(found, share)
    assert chosen.sum() == number
    assert found[chosen].min() > found[~chosen].max()


@pytest.mark.parametrize(("share", "number"), [(0.01, 10), (1e-9, 1)])
def test_those_between_the_bounds_are_drawn_alike_on_every_rank(share: float, number: int) -> None:
    found = covariances(LOG_PROBS, GAINS)
    chosen = drawn_between(found, share, 0.5, 1.5)
    assert chosen.sum() == number
    assert ((found[chosen] > 0.5) & (found[chosen] < 1.5)).all()
    np.testing.assert_array_equal(chosen, drawn_between(found.copy(), share, 0.5, 1.5))
    other = covariances(LOG_PROBS[::-1].copy(), GAINS)
    assert not np.array_equal(np.flatnonzero(chosen), np.flatnonzero(drawn_between(other, share, 0.5, 1.5)))


def test_fewer_are_drawn_where_fewer_are_between_the_bounds() -> None:
    found = covariances(LOG_PROBS, GAINS)
    assert drawn_between(found, 1.0, 1.0, 5.0).sum() == ((found > 1.0) & (found < 5.0)).sum()
    assert not drawn_between(found, 0.1, 1e6, 2e6).any()


def test_credit_selects_by_the_policy_at_the_start_of_the_step() -> None:
    log_probs = np.array([-5.0, -0.1, -3.0, -0.2], dtype=np.float32)
    seen = experience_of(
        rewards=[1.0, 0.0], lengths=[2, 2], group_index=np.array([0, 0], dtype=np.int32), log_probs=log_probs
    )
    credit = GRPO(GRPOConfig(loss_mode="kl_cov", kl_cov_ratio=0.25)).credit(seen)
    assert credit.is_selected is not None
    assert credit.is_selected.tolist() == [False, True, False, False]  # likely, and of the better answer


@pytest.mark.parametrize("loss_mode", ["clip_cov", "kl_cov"])
def test_a_step_treats_them_apart(loss_mode: Any, model_path: str) -> None:
    """With one update a step the ratios are 1: Clip-Cov has less gradient, KL-Cov a kink that has none."""
    norms = {}
    for mode in ("vanilla", loss_mode):
        config = GRPOConfig(loss_mode=mode, clip_cov_ratio=0.5, clip_cov_lb=-100.0, clip_cov_ub=100.0)
        trainer = create_trainer(TorchTrainerConfig(), config, model_path=model_path, seed=0)
        metrics = trainer.step(random_batch(0))
        norms[mode] = metrics["actor/grad_norm"]
        share = metrics["actor/pg_clipfrac"]
    assert share == pytest.approx(0.5, abs=0.05) if loss_mode == "clip_cov" else share == 0.0
    assert (norms[loss_mode] == pytest.approx(norms["vanilla"], rel=1e-4)) == (loss_mode == "kl_cov")


def test_bounds_the_wrong_way_round_are_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"clip_cov_ub: must be above clip_cov_lb \(1\), got 0.5"):
        GRPOConfig(clip_cov_ub=0.5)
