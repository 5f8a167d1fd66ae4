"""The mini-batches of a step: which samples each update sees."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def mini_batches(
    num_samples: int, num_mini_batches: int, *, seed: int, step: int, epoch: int
) -> list[NDArray[np.int64]]:
    """One pass over the samples: shuffled by (seed, step, epoch) and cut as evenly as can be; never an empty part."""
    if num_mini_batches == 1:
        return [np.arange(num_samples)]
    order = np.random.default_rng([seed, step, epoch]).permutation(num_samples)
    return np.array_split(order, min(num_mini_batches, num_samples))
