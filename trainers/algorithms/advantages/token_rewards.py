"""Rewards per token, from which every estimator of advantages begins.

Legend: B samples, K trained tokens of all samples end to end.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from rlserve.trainers.algorithms.base import Experience, FloatArray
from rlserve.trainers.algorithms.config import UpdateConfig
from rlserve.trainers.algorithms.kl_control import kl_coefficient, kl_penalties
from rlserve.trainers.batch import LENGTH


def token_rewards(experience: Experience, config: UpdateConfig, divergences: FloatArray | None = None) -> FloatArray:
    """[K] the reward of each token: what the environment gave after a turn at the turn's last token, the rest of the
    sample's reward, with any penalty for its length, at its last token; less the KL penalty at every token.

    The penalty of a token is ``kl_coefficient`` times the estimate ``kl_penalty`` of the KL divergence from the
    reference (Ziegler et al. 2019, arXiv 1909.08593, equation 2). No coefficient, no penalty. ``divergences`` [K] are
    those estimates, where they are known.
    """
    lengths = experience.lengths
    per_token = np.zeros(int(lengths.sum()))
    if config.kl_coefficient > 0:
        found = kl_penalties(experience, config) if divergences is None else divergences
        per_token -= kl_coefficient(experience, config) * found
    rewards = experience.rewards.astype(np.float64) - penalties(lengths, experience.finish_reasons, config)
    if experience.turn_rewards is not None:
        of_turns = experience.turn_rewards.astype(np.float64)
        per_token += of_turns
        rewards -= sample_rewards(of_turns, lengths)
    per_token[np.cumsum(lengths) - 1] += rewards
    return per_token


def penalties(lengths: NDArray[np.int32], finish_reasons: Sequence[str], config: UpdateConfig) -> FloatArray:
    """[B] what is taken off the rewards of answers of these lengths: for being cut, and for being too long."""
    taken_off = np.zeros(len(lengths))
    if config.missing_eos_penalty:
        taken_off += config.missing_eos_penalty * np.array([reason == LENGTH for reason in finish_reasons])
    if config.overlong_max_length is not None:
        taken_off += config.overlong_penalty_factor * overlong_share(
            lengths, config.overlong_max_length, config.overlong_buffer_share * config.overlong_max_length
        )
    return taken_off


def overlong_share(lengths: NDArray[np.int32], max_length: int, buffer_length: float) -> FloatArray:
    """[B] how far an answer reaches into the last ``buffer_length`` tokens before ``max_length``, from 0 to 1 (DAPO,
    arXiv 2503.14476, equation 13, negated)."""
    share: FloatArray = np.clip((lengths - (max_length - buffer_length)) / buffer_length, 0.0, 1.0)
    return share


def sample_rewards(per_token: FloatArray, lengths: NDArray[np.int32]) -> FloatArray:
    """[B] the sum over each sample's tokens."""
    sums: FloatArray = np.add.reduceat(per_token, np.cumsum(lengths) - lengths)
    return sums
