"""Tokens that a step would take the most entropy from (Cui et al. 2025, arXiv 2505.22617).

The entropy of a policy falls by about the covariance of log-probability and advantage over its tokens (equation 8), so
a token takes its own product of the two, each less its mean. Taken from the policy at the start of the step.

Legend: K trained tokens of all samples end to end.
"""

from __future__ import annotations

import zlib

import numpy as np
from numpy.typing import NDArray

from rlserve.trainers.algorithms.base import FloatArray

BoolArray = NDArray[np.bool_]


def covariances(log_probs_K: FloatArray, advantages_K: FloatArray) -> FloatArray:
    """[K] what each token adds to the covariance (equation 10)."""
    product: FloatArray = (log_probs_K - log_probs_K.mean()) * (advantages_K - advantages_K.mean())
    return product


def drawn_between(covariances_K: FloatArray, share: float, lower: float, upper: float) -> BoolArray:
    """[K] Clip-Cov's tokens (equation 11): ``share`` of all, at least one, drawn from those between the bounds, or all
    of these if they are fewer. The batch itself seeds the draw, so every rank draws the same."""
    candidates = np.flatnonzero((covariances_K > lower) & (covariances_K < upper))
    number = min(max(int(share * len(covariances_K)), 1), len(candidates))
    draws = np.random.default_rng(zlib.crc32(covariances_K.tobytes()))
    chosen = np.zeros(len(covariances_K), dtype=bool)
    chosen[draws.choice(candidates, number, replace=False)] = True
    return chosen


def largest(covariances_K: FloatArray, share: float) -> BoolArray:
    """[K] KL-Cov's tokens (equation 12): the ``share`` of all with the largest covariances, at least one."""
    number = max(int(share * len(covariances_K)), 1)
    chosen = np.zeros(len(covariances_K), dtype=bool)
    chosen[np.argsort(-covariances_K, kind="stable")[:number]] = True
    return chosen
