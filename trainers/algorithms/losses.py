"""The losses of PPO, element by element: pure functions of per-token tensors.

Legend: A tokens. All tensors are [A] float32. ``old`` is the trainer's own policy or critic at the start of the
step, ``behaviour`` the distribution that the engine sampled from.

Which policy is trained: the one that was sampled, softmax(logits / temperature) over the whole vocabulary. New,
old and reference log-probabilities in the losses are all of that policy, so at temperature 1 they are the raw
ones. Top-k and top-p are not part of it: they only change what was sampled, like staleness and the engine's
arithmetic do, and the importance weight old / behaviour corrects for all three.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class LossTerm:
    """A loss per token, and where clipping took its gradient away."""

    per_token: Tensor
    """[A]"""
    is_clipped: Tensor
    """[A] bool."""


def importance_weights(old_log_probs: Tensor, behaviour_log_probs: Tensor, cap: float) -> Tensor:
    """min(old / behaviour, cap), without gradient: truncated importance sampling (Ionides 2008; for the engine's
    mismatch Yao et al. 2025). It multiplies the policy loss."""
    return torch.exp(old_log_probs - behaviour_log_probs).clamp(max=cap).detach()


def policy_loss(
    log_probs: Tensor, old_log_probs: Tensor, advantages: Tensor, weights: Tensor, clip_ratio: float
) -> LossTerm:
    """The clipped surrogate, negated and weighted (Schulman et al. 2017, arXiv 1707.06347, equation 7)."""
    ratios = torch.exp(log_probs - old_log_probs)
    unclipped = ratios * advantages
    clipped = ratios.clamp(1 - clip_ratio, 1 + clip_ratio) * advantages
    return LossTerm(per_token=-weights * torch.minimum(unclipped, clipped), is_clipped=clipped < unclipped)


def value_loss(values: Tensor, old_values: Tensor, returns: Tensor, value_clip: float) -> LossTerm:
    """Half the squared error, the larger of plain and with the value kept within ``value_clip`` of the old one."""
    near_old = old_values + (values - old_values).clamp(-value_clip, value_clip)
    unclipped = (values - returns).square()
    clipped = (near_old - returns).square()
    return LossTerm(per_token=0.5 * torch.maximum(unclipped, clipped), is_clipped=clipped > unclipped)
