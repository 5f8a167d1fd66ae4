"""GMPO (Zhao et al. 2025, arXiv 2507.20673): the geometric mean of an answer's ratios, each clipped before."""

from __future__ import annotations

import torch

from rlserve.trainers.algorithms.base import PolicyTokens
from rlserve.trainers.algorithms.config import UpdateConfig
from rlserve.trainers.algorithms.losses.base import LossTerm
from rlserve.trainers.algorithms.whole_samples import over_samples


def geo_mean(tokens: PolicyTokens, config: UpdateConfig) -> LossTerm:
    """-exp(mean of the clipped log-ratios) Â, for each token of the answer (equation 4).

    A log-ratio is clipped to -clip_ratio_low and clip_ratio_high, and only the way that the advantage goes.
    """
    log_ratios = tokens.log_probs - tokens.old_log_probs
    clipped = log_ratios.clamp(-config.clip_ratio_low, config.clip_ratio_high)
    kept = torch.where(tokens.advantages < 0, torch.maximum(log_ratios, clipped), torch.minimum(log_ratios, clipped))
    ratios = torch.exp(over_samples("mean", kept, tokens.samples))
    return LossTerm(per_token=-ratios * tokens.advantages, is_clipped=kept != log_ratios)
