"""The whole correction: what multiplies the policy's loss of each token, and what is reported of it.

Legend: a tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from rlserve.trainers.algorithms.base import PolicyTokens
from rlserve.trainers.algorithms.rollout_correction.config import RolloutCorrectionConfig
from rlserve.trainers.algorithms.rollout_correction.importance import importance_weights
from rlserve.trainers.algorithms.rollout_correction.rejection import is_rejected


@dataclass(frozen=True, kw_only=True)
class Correction:
    """Of some tokens, without gradient."""

    weights: Tensor
    """[a] 0 at tokens that are rejected."""
    means: Mapping[str, Tensor]
    """As ``PolicyLoss.means``."""


@torch.no_grad()
def correct(tokens: PolicyTokens, config: RolloutCorrectionConfig) -> Correction:
    """Importance weights, then rejection."""
    old, behaviour = tokens.old_log_probs, tokens.behaviour_log_probs
    weights, is_changed = importance_weights(old - behaviour, tokens.samples, config)
    means = {"training/importance_weight_mean": weights, "training/importance_weight_clipfrac": is_changed}
    if config.rollout_rs is not None:
        rejected = is_rejected(behaviour, old, tokens.samples, config.rollout_rs, config.rollout_rs_threshold)
        means["training/rejected_frac"] = rejected
        weights = weights.masked_fill(rejected, 0.0)
    return Correction(weights=weights, means=means)
