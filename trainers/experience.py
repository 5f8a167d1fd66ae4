"""What a step learns from: the batch with everything that is fixed before the first update.

Legend: A response tokens of the batch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rlserve.trainers.algorithms.advantages import generalised_advantages, rewards_to_go, token_rewards, whiten
from rlserve.trainers.batch import Batch
from rlserve.trainers.config import AlgorithmConfig

FloatArray = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True, eq=False)
class Scores:
    """What the networks say about the batch before the step; each [A] but the last. None where it needs none."""

    values: FloatArray
    log_probs: FloatArray | None
    """Under the trained policy (see ``losses``)."""
    raw_log_probs: FloatArray | None
    """Under the model itself, at temperature 1."""
    reference_log_probs: FloatArray | None
    """Under the frozen reference, at the same temperature."""
    final_values: FloatArray | None = None
    """[B] of the states after the samples' last tokens, 0 where the episode ends; None if it ends for all."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Experience:
    """Per token, [A] float32 tensors on the trainer's device."""

    old_log_probs: Tensor | None
    """None where the step makes a single update: then the current policy *is* the old one, and the forward pass
    of the update gives its log-probabilities."""
    behaviour_log_probs: Tensor
    old_values: Tensor
    rewards: Tensor
    """With the KL penalty taken off."""
    advantages: Tensor
    """Not whitened."""
    whitened_advantages: Tensor
    returns: Tensor


def make_experience(batch: Batch, scores: Scores, algorithm: AlgorithmConfig, device: torch.device) -> Experience:
    """Rewards per token, advantages and returns of the whole batch; the same bits on every rank."""
    rewards = token_rewards(
        batch.rewards, batch.response_lengths, scores.log_probs, scores.reference_log_probs, algorithm.kl_coefficient
    )
    advantages, returns = generalised_advantages(
        rewards,
        scores.values,
        batch.response_lengths,
        gamma=algorithm.gamma,
        gae_lambda=algorithm.gae_lambda,
        final_values=scores.final_values,
    )
    max_spread = math.inf
    if algorithm.bound_whitening:
        max_spread = float(rewards_to_go(rewards, batch.response_lengths, gamma=algorithm.gamma).std())

    def to_device(array: NDArray[np.float32] | NDArray[np.float64]) -> Tensor:
        return torch.from_numpy(array.astype(np.float32)).to(device)

    return Experience(
        old_log_probs=None if scores.log_probs is None else to_device(scores.log_probs),
        behaviour_log_probs=to_device(batch.behaviour_log_probs),
        old_values=to_device(scores.values),
        rewards=to_device(rewards),
        advantages=to_device(advantages),
        whitened_advantages=to_device(whiten(advantages, max_spread)),
        returns=to_device(returns),
    )
