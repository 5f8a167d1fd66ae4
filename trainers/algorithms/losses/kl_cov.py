"""KL-Cov (Cui et al. 2025, arXiv 2505.22617): tokens that take the most entropy are held near the old policy."""

from __future__ import annotations

import torch

from rlserve.trainers.algorithms.base import PolicyTokens
from rlserve.trainers.algorithms.config import UpdateConfig
from rlserve.trainers.algorithms.losses.base import LossTerm


def kl_cov(tokens: PolicyTokens, config: UpdateConfig) -> LossTerm:
    """-ratio Â, plus ``ppo_kl_coef`` |log ratio| at selected tokens (equation 13). Nothing is clipped."""
    assert tokens.is_selected is not None
    log_ratios = tokens.log_probs - tokens.old_log_probs
    penalties = torch.where(tokens.is_selected, config.ppo_kl_coef * log_ratios.abs(), 0.0)
    return LossTerm(
        per_token=penalties - torch.exp(log_ratios) * tokens.advantages,
        is_clipped=torch.zeros_like(tokens.is_selected),
    )
