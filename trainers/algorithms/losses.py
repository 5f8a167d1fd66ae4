"""Losses, element by element: pure functions of per-token tensors.

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

from rlserve.trainers.algorithms.base import PolicyLoss, PolicyTokens

_MAX_EXPONENT = 20.0
"""Beyond it the estimate of one token would drown all others."""


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


def clipped_surrogate(
    log_probs: Tensor, old_log_probs: Tensor, advantages: Tensor, weights: Tensor, clip_ratio: float
) -> LossTerm:
    """The clipped surrogate, negated and weighted (Schulman et al. 2017, arXiv 1707.06347, equation 7)."""
    ratios = torch.exp(log_probs - old_log_probs)
    unclipped = ratios * advantages
    clipped = ratios.clamp(1 - clip_ratio, 1 + clip_ratio) * advantages
    return LossTerm(per_token=-weights * torch.minimum(unclipped, clipped), is_clipped=clipped < unclipped)


def clipped_value_loss(values: Tensor, old_values: Tensor, returns: Tensor, value_clip: float) -> LossTerm:
    """Half the squared error, the larger of plain and with the value kept within ``value_clip`` of the old one."""
    near_old = old_values + (values - old_values).clamp(-value_clip, value_clip)
    unclipped = (values - returns).square()
    clipped = (near_old - returns).square()
    return LossTerm(per_token=0.5 * torch.maximum(unclipped, clipped), is_clipped=clipped > unclipped)


def kl_k3(log_probs: Tensor, reference_log_probs: Tensor) -> Tensor:
    """The estimate of the KL divergence from the reference that is never negative: exp(d) - 1 - d, where d =
    log π_reference - log π (Schulman 2020, "Approximating KL divergence"; arXiv 2402.03300, equation 4)."""
    difference = (reference_log_probs - log_probs).clamp(-_MAX_EXPONENT, _MAX_EXPONENT)
    return torch.expm1(difference) - difference


def clipped_policy_loss(
    tokens: PolicyTokens, *, clip_ratio: float, entropy_coefficient: float, importance_sampling_cap: float
) -> PolicyLoss:
    """The clipped surrogate with truncated importance weights, less the entropy bonus."""
    weights = importance_weights(tokens.old_log_probs, tokens.behaviour_log_probs, importance_sampling_cap)
    term = clipped_surrogate(tokens.log_probs, tokens.old_log_probs, tokens.advantages, weights, clip_ratio)
    per_token = term.per_token
    if tokens.entropies is not None:
        per_token = per_token - entropy_coefficient * tokens.entropies
    return PolicyLoss(
        per_token=per_token,
        losses={"actor/pg_loss": term.per_token},
        means={"actor/pg_clipfrac": term.is_clipped, "training/importance_weight_mean": weights},
    )
