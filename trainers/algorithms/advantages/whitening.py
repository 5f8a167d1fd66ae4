"""Advantages and rewards brought to one scale over the whole batch.

Legend: K trained tokens of all samples end to end.
"""

from __future__ import annotations

import math

from rlserve.trainers.algorithms.base import FloatArray


def to_unit_spread(rewards: FloatArray) -> FloatArray:
    """[K] rewards of tokens with (population) standard deviation 1 about the mean that they have."""
    mean = rewards.mean()
    spread: FloatArray = (rewards - mean) / (rewards.std() + 1e-8) + mean
    return spread


def whiten(advantages: FloatArray, max_spread: float = math.inf) -> FloatArray:
    """[K] advantages shifted to mean 0 and scaled to (population) standard deviation 1 over all tokens; a lone token
    gets 0.

    Args:
        max_spread: standard deviation of what the advantages estimate. Where theirs is larger, the rest is the critic's
            error, which scaling to 1 would blow up; so they are scaled to the quotient of the two instead.
    """
    spread = advantages.std() + 1e-8
    whitened: FloatArray = (advantages - advantages.mean()) / spread * min(1.0, max_spread / spread)
    return whitened
