"""CISPO (MiniMax 2025, arXiv 2506.13585): the ratio is clipped as a weight, so no token loses its gradient."""

from __future__ import annotations

import torch

from rlserve.trainers.algorithms.base import PolicyTokens
from rlserve.trainers.algorithms.config import UpdateConfig
from rlserve.trainers.algorithms.losses.base import LossTerm


def cispo(tokens: PolicyTokens, config: UpdateConfig) -> LossTerm:
    """-clip(ratio, 1 - clip_ratio_low, 1 + clip_ratio_high) Â log π, without gradient through the ratio (equations 4
    and 5). ``is_clipped`` says which weights are not the ratio."""
    ratios = torch.exp(tokens.log_probs - tokens.old_log_probs).detach()
    weights = ratios.clamp(1 - config.clip_ratio_low, 1 + config.clip_ratio_high)
    return LossTerm(per_token=-weights * tokens.advantages * tokens.log_probs, is_clipped=weights != ratios)
