"""Means with their confidence intervals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np

_NUM_RESAMPLES = 2000


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds, with an interval that holds it with 95 % confidence."""

    mean: float
    low: float
    high: float


def estimate(values: Sequence[float]) -> Estimate:
    """By the bootstrap: quantiles of the means of samples drawn with replacement. With one value there is no width."""
    mean = fmean(values)
    if len(values) < 2:
        return Estimate(mean, mean, mean)
    rng = np.random.default_rng(0)
    means = rng.choice(np.asarray(values), size=(_NUM_RESAMPLES, len(values))).mean(axis=1)
    low, high = np.quantile(means, (0.025, 0.975)).tolist()
    return Estimate(mean, low, high)
