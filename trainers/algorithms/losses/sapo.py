"""SAPO (Gao et al. 2025, arXiv 2511.20347): a soft gate takes a token's gradient away as its ratio leaves 1."""

from __future__ import annotations

import torch

from rlserve.trainers.algorithms.base import PolicyTokens
from rlserve.trainers.algorithms.config import UpdateConfig
from rlserve.trainers.algorithms.losses.base import LossTerm


def sapo(tokens: PolicyTokens, config: UpdateConfig) -> LossTerm:
    """-4 / τ · sigmoid(τ (ratio - 1)) Â, with ``tau_pos`` where Â > 0 and ``tau_neg`` elsewhere (equations 5 and 6). At
    ratio 1 the gradient is that of the ratio times Â. Nothing is clipped."""
    ratios = torch.exp(tokens.log_probs - tokens.old_log_probs)
    is_positive = tokens.advantages > 0
    temperatures = torch.where(is_positive, config.tau_pos, config.tau_neg)
    gates = torch.sigmoid(temperatures * (ratios - 1)) * 4 / temperatures
    return LossTerm(per_token=-gates * tokens.advantages, is_clipped=torch.zeros_like(is_positive))
