"""PPO's losses at some tokens of the experience.

Legend: a tokens of a logical shard, or of a whole mini-batch.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from rlserve.trainers.algorithms.losses import LossTerm, importance_weights, policy_loss, value_loss
from rlserve.trainers.config import AlgorithmConfig
from rlserve.trainers.experience import Experience


@dataclass(frozen=True, kw_only=True, eq=False)
class PolicyTerms:
    """Per token, each [a]."""

    old_log_probs: Tensor
    weights: Tensor
    """Truncated importance weights."""
    loss: LossTerm


def policy_terms(algorithm: AlgorithmConfig, experience: Experience, tokens: Tensor, log_probs: Tensor) -> PolicyTerms:
    """The policy's loss at ``tokens`` (indices into the experience) for the new ``log_probs``, both [a]."""
    old = log_probs.detach() if experience.old_log_probs is None else experience.old_log_probs[tokens]
    weights = importance_weights(old, experience.behaviour_log_probs[tokens], algorithm.importance_sampling_cap)
    loss = policy_loss(log_probs, old, experience.whitened_advantages[tokens], weights, algorithm.clip_ratio)
    return PolicyTerms(old_log_probs=old, weights=weights, loss=loss)


def value_term(algorithm: AlgorithmConfig, experience: Experience, tokens: Tensor, values: Tensor) -> LossTerm:
    """The critic's loss at ``tokens`` (indices into the experience) for the new ``values``, both [a]."""
    return value_loss(values, experience.old_values[tokens], experience.returns[tokens], algorithm.value_clip)
