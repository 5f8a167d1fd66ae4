"""The coefficient of the KL penalty in the reward: fixed, or adapted to a target (Ziegler et al. 2019, arXiv
1909.08593, equation 4)."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from rlserve.trainers.algorithms.base import Experience, FloatArray
from rlserve.trainers.algorithms.config import UpdateConfig
from rlserve.trainers.algorithms.kl import kl_divergence

KL_COEFFICIENT = "kl_coefficient"
"""Name of what is carried from step to step."""
_MAX_ERROR = 0.2
"""Of the divergence, relative to the target."""


def kl_penalties(experience: Experience, config: UpdateConfig) -> FloatArray:
    """[K] the estimate ``kl_penalty`` of each token's KL divergence from the reference, without its coefficient."""
    assert experience.log_probs is not None
    assert experience.reference_log_probs is not None
    penalties: FloatArray = kl_divergence(
        _tensor(experience.log_probs), _tensor(experience.reference_log_probs), config.kl_penalty
    ).numpy()
    return penalties


def kl_coefficient(experience: Experience, config: UpdateConfig) -> float:
    """Of this step."""
    return config.kl_coefficient if config.target_kl is None else experience.carried[KL_COEFFICIENT]


def adapted(coefficient: float, divergences_B: FloatArray, target_kl: float, horizon: float) -> float:
    """The coefficient of the step after one with these divergences of answers, in the mean over their tokens:

    coefficient · (1 + B / horizon · clip(mean / target - 1, -0.2, 0.2))
    """
    error = float(np.clip(divergences_B.mean() / target_kl - 1, -_MAX_ERROR, _MAX_ERROR))
    return coefficient * max(0.0, 1 + error * len(divergences_B) / horizon)


def _tensor(array: NDArray[np.float32]) -> torch.Tensor:
    return torch.from_numpy(array.astype(np.float64))
