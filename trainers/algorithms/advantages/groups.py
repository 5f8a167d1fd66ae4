"""Rewards compared within the group of answers to the same prompt.

Legend: B samples, G groups.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from rlserve.trainers.algorithms.base import FloatArray
from rlserve.trainers.algorithms.config import RewardScale

_EPSILON = 1e-6
"""Added to standard deviations."""


def group_means(numbers_B: FloatArray, group_index: NDArray[np.int32]) -> FloatArray:
    """[B] the mean over each sample's group."""
    _, groups_B = np.unique(group_index, return_inverse=True)
    means_G = np.bincount(groups_B, weights=numbers_B) / np.bincount(groups_B)
    means_B: FloatArray = means_G[groups_B]
    return means_B


def group_advantages(rewards_B: FloatArray, group_index: NDArray[np.int32], scale: RewardScale) -> FloatArray:
    """[B] how much better a sample is than its group (Shao et al. 2024, arXiv 2402.03300, section 4.1.2).

        advantage_b = (r_b - mean of the group) / (standard deviation + 1e-6)

    A sample that is alone in its group, and all samples of a group whose rewards are alike, get 0.

    Args:
        group_index: [B] samples with the same number are one group.
        scale: which rewards the deviation is of: the group's, the batch's, or ``none`` for no division. The deviation
            is the sample's (n - 1), as TRL and verl have it.
    """
    differences_B: FloatArray = rewards_B - group_means(rewards_B, group_index)
    if scale == "none":
        return differences_B
    if scale == "batch":
        spread = float(rewards_B.std(ddof=1)) if len(rewards_B) > 1 else 1.0
        return differences_B / (spread + _EPSILON)
    _, groups_B = np.unique(group_index, return_inverse=True)
    squares_G = np.bincount(groups_B, weights=differences_B**2)
    deviations_G = np.sqrt(squares_G / np.maximum(np.bincount(groups_B) - 1, 1))
    scaled_B: FloatArray = differences_B / (deviations_G[groups_B] + _EPSILON)
    return scaled_B
