"""What multiplies the policy's loss of each token, and what is reported of it.

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


@dataclass(frozen=True, kw_only=True)
class Correction:
    """Of some tokens, without gradient."""

    weights: Tensor
    """[a]"""
    means: Mapping[str, Tensor]
    """As ``PolicyLoss.means``."""


@torch.no_grad()
def correct(tokens: PolicyTokens, config: RolloutCorrectionConfig) -> Correction:
    """Importance weights."""
    weights, is_changed = importance_weights(tokens.old_log_probs - tokens.behaviour_log_probs, tokens.samples, config)
    means = {"training/importance_weight_mean": weights, "training/importance_weight_clipfrac": is_changed}
    return Correction(weights=weights, means=means)
