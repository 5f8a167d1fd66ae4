"""The clipped surrogate (Schulman et al. 2017, arXiv 1707.06347, equation 7), with a bound of its own each way."""

from __future__ import annotations

import torch
from torch import Tensor

from rlserve.trainers.algorithms.base import PolicyTokens
from rlserve.trainers.algorithms.config import UpdateConfig
from rlserve.trainers.algorithms.losses.base import LossTerm


def vanilla(tokens: PolicyTokens, config: UpdateConfig) -> LossTerm:
    """Of the ratio of each token."""
    return clipped_surrogate(torch.exp(tokens.log_probs - tokens.old_log_probs), tokens.advantages, config)


def clipped_surrogate(ratios: Tensor, advantages: Tensor, config: UpdateConfig) -> LossTerm:
    """-min(ratio Â, clip(ratio, 1 - clip_ratio_low, 1 + clip_ratio_high) Â), and at most clip_ratio_c |Â| where Â < 0.

    The bounds are apart as in DAPO (arXiv 2503.14476, "clip-higher"). The last one is the dual clip (Ye et al. 2019,
    arXiv 1912.09729): without it a token of negative advantage whose ratio has grown has a loss without bound.
    """
    unclipped = -ratios * advantages
    clipped = -ratios.clamp(1 - config.clip_ratio_low, 1 + config.clip_ratio_high) * advantages
    loss, is_clipped = torch.maximum(unclipped, clipped), clipped > unclipped
    if config.clip_ratio_c is not None:
        largest = torch.where(advantages < 0, -config.clip_ratio_c * advantages, torch.inf)
        loss, is_clipped = torch.minimum(loss, largest), is_clipped | (loss > largest)
    return LossTerm(per_token=loss, is_clipped=is_clipped)
