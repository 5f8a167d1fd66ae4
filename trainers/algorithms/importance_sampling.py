"""Correcting for samples that another distribution made than the one that is trained."""

from __future__ import annotations

import torch
from torch import Tensor


def importance_weights(old_log_probs: Tensor, behaviour_log_probs: Tensor, cap: float) -> Tensor:
    """min(old / behaviour, cap), without gradient: truncated importance sampling (Ionides 2008; for the engine's
    mismatch Yao et al. 2025). It multiplies the policy loss."""
    return torch.exp(old_log_probs - behaviour_log_probs).clamp(max=cap).detach()
