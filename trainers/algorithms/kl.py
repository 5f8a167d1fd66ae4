"""Estimates of the KL divergence of the policy from the reference, from one sampled token each (Schulman 2020,
"Approximating KL divergence").

With d = log π - log π_reference of a token that π has drawn:

    k1    d                     unbiased, may be negative
    k2    d² / 2                biased; its gradient is the one of the divergence
    k3    exp(-d) - 1 + d       unbiased, never negative; its gradient is biased

``k1+`` and ``k3+`` have the value of k1 or k3 and the gradient of k2.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from rlserve.trainers.algorithms.config import KLEstimator

_MAX_EXPONENT = 20.0
"""Of exp(-d): beyond it the estimate of one token would drown all others."""
_MAX_K3 = 10.0


def kl_divergence(log_probs: Tensor, reference_log_probs: Tensor, estimator: KLEstimator) -> Tensor:
    """The estimate for each token."""
    difference = log_probs - reference_log_probs
    value = _ESTIMATES[estimator.removesuffix("+")](difference)
    if not estimator.endswith("+"):
        return value
    gives_gradient = _k2(difference)
    return gives_gradient - gives_gradient.detach() + value.detach()


def _k1(difference: Tensor) -> Tensor:
    return difference


def _k2(difference: Tensor) -> Tensor:
    return 0.5 * difference.square()


def _k3(difference: Tensor) -> Tensor:
    exponent = (-difference).clamp(-_MAX_EXPONENT, _MAX_EXPONENT)
    return (torch.expm1(exponent) - exponent).clamp(max=_MAX_K3)


_ESTIMATES: Mapping[str, Callable[[Tensor], Tensor]] = {"k1": _k1, "k2": _k2, "k3": _k3}
