"""How tokens make the loss of a mini-batch, against loops over samples."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import pytest
from policy_samples import rows

from rlserve.errors import ConfigurationError
from rlserve.trainers import GRPOConfig, PPOConfig
from rlserve.trainers.algorithms.aggregation import aggregate
from rlserve.trainers.algorithms.config import LossAggregation

LENGTHS = np.array([3, 1, 5, 2], dtype=np.int32)
FACTOR = 7.0
FORMULAS: Mapping[LossAggregation, Callable[[list[np.ndarray]], float]] = {
    "token-mean": lambda samples: float(np.concatenate(samples).mean()),
    "seq-mean-token-sum": lambda samples: float(np.mean([sample.sum() for sample in samples])),
    "seq-mean-token-mean": lambda samples: float(np.mean([sample.mean() for sample in samples])),
    "seq-mean-token-sum-norm": lambda samples: float(np.mean([sample.sum() / FACTOR for sample in samples])),
}
"""Of the losses of each sample's tokens."""


@pytest.mark.parametrize("mode", FORMULAS)
@pytest.mark.parametrize("num_left_out", [0, 4])
def test_the_loss_is_the_formulas(mode: LossAggregation, num_left_out: int) -> None:
    losses = np.random.default_rng(0).normal(size=int(LENGTHS.sum()))
    is_kept = np.ones(len(losses), dtype=bool)
    is_kept[:num_left_out] = False  # the first two samples are left out wholly
    weights = aggregate(mode, LENGTHS, is_kept, FACTOR)
    kept = [sample[keeps] for sample, keeps in zip(rows(losses, LENGTHS), rows(is_kept, LENGTHS), strict=True)]
    expected = FORMULAS[mode]([sample for sample in kept if len(sample)])
    assert (weights.per_token * losses).sum() / weights.normaliser == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("mode", FORMULAS)
def test_a_mini_batch_that_is_left_out_has_loss_0(mode: LossAggregation) -> None:
    weights = aggregate(mode, LENGTHS, np.zeros(int(LENGTHS.sum()), dtype=bool), FACTOR)
    assert weights.normaliser > 0
    assert not weights.per_token.any()


def test_every_algorithm_has_its_papers_default() -> None:
    assert (PPOConfig().loss_agg_mode, GRPOConfig().loss_agg_mode) == ("token-mean", "seq-mean-token-mean")


@pytest.mark.parametrize("changes", [{"loss_agg_mode": "seq-mean-token-sum-norm"}, {"loss_scale_factor": 10.0}])
def test_the_length_norm_is_given_exactly_where_it_is_used(changes: dict[str, object]) -> None:
    with pytest.raises(ConfigurationError, match="loss_scale_factor: must be a number above 0 with loss_agg_mode"):
        GRPOConfig(**changes)  # type: ignore[arg-type]
