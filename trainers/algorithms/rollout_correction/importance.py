"""Importance weights (Ionides 2008; for the engine's mismatch Yao et al. 2025).

Legend: a tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rlserve.trainers.algorithms.rollout_correction.config import RolloutCorrectionConfig
from rlserve.trainers.algorithms.whole_samples import over_samples


def importance_weights(log_ratios: Tensor, samples: Tensor, config: RolloutCorrectionConfig) -> tuple[Tensor, Tensor]:
    """[a] weights, and [a] bool where the thresholds changed them.

    Args:
        log_ratios: [a] log π_old - log μ.
        samples: [a] the sample of each token.
    """
    if config.rollout_is is None:
        return torch.ones_like(log_ratios), torch.zeros_like(log_ratios, dtype=torch.bool)
    if config.rollout_is == "sequence":
        log_ratios = over_samples("sum", log_ratios, samples)
    weights = torch.exp(log_ratios)
    lower, upper = config.rollout_is_threshold_lower, config.rollout_is_threshold
    is_outside = (weights < lower) | (weights > upper)
    if config.rollout_is_mode == "mask":
        return weights.masked_fill(is_outside, 0.0), is_outside
    return weights.clamp(lower, upper), is_outside
