"""Rewards compared within the group of answers to the same prompt.

Legend: B samples.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from rlserve.trainers.algorithms.base import FloatArray
from rlserve.trainers.algorithms.config import RewardScale

_EPSILON = 1e-6
"""Added to standard deviations."""


def group_sums(numbers_B: FloatArray, group_index: NDArray[np.int32]) -> FloatArray:
    """[B] the sum over each sample's group."""
    _, groups_B = np.unique(group_index, return_inverse=True)
    sums_G: FloatArray = np.bincount(groups_B, weights=numbers_B).astype(np.float64)
    return sums_G[groups_B]


def group_sizes(group_index: NDArray[np.int32]) -> FloatArray:
    """[B] how many samples each sample's group has."""
    return group_sums(np.ones(len(group_index)), group_index)


def group_advantages(rewards_B: FloatArray, group_index: NDArray[np.int32], scale: RewardScale) -> FloatArray:
    """[B] how much better a sample is than its group (Shao et al. 2024, arXiv 2402.03300, section 4.1.2).

        advantage_b = (r_b - mean of the group) / (standard deviation + 1e-6)

    A sample that is alone in its group, and all samples of a group whose rewards are alike, get 0.

    Args:
        group_index: [B] samples with the same number are one group.
        scale: which rewards the deviation is of: the group's, the batch's, or ``none`` for no division. The deviation
            is the sample's (n - 1), as TRL and verl have it.
    """
    sizes_B = group_sizes(group_index)
    differences_B = rewards_B - group_sums(rewards_B, group_index) / sizes_B
    if scale == "none":
        return differences_B
    if scale == "batch":
        spread = float(rewards_B.std(ddof=1)) if len(rewards_B) > 1 else 1.0
        return differences_B / (spread + _EPSILON)
    deviations_B = np.sqrt(group_sums(differences_B**2, group_index) / np.maximum(sizes_B - 1, 1))
    scaled_B: FloatArray = differences_B / (deviations_B + _EPSILON)
    return scaled_B
