"""The losses, number by number."""

from __future__ import annotations

import math

import torch

from rlserve.trainers.algorithms.losses import clipped_surrogate, clipped_value_loss, importance_weights


def log_of(*ratios: float) -> torch.Tensor:
    return torch.tensor([math.log(ratio) for ratio in ratios])


def test_policy_loss_is_clipped_only_where_the_ratio_has_gone_the_way_of_the_advantage() -> None:
    log_probs = log_of(1.5, 1.5, 0.5, 0.5, 1.1).requires_grad_()
    advantages = torch.tensor([1.0, -1.0, 1.0, -1.0, 2.0])
    term = clipped_surrogate(log_probs, torch.zeros(5), advantages, torch.ones(5), clip_ratio=0.2)
    torch.testing.assert_close(term.per_token, torch.tensor([-1.2, 1.5, -0.5, 0.8, -2.2]))
    assert term.is_clipped.tolist() == [True, False, False, True, False]
    term.per_token.sum().backward()
    torch.testing.assert_close(log_probs.grad, torch.tensor([0.0, 1.5, -0.5, 0.0, -2.2]))


def test_policy_loss_is_multiplied_by_the_importance_weights() -> None:
    weights = torch.tensor([0.5, 2.0])
    term = clipped_surrogate(torch.zeros(2), torch.zeros(2), torch.tensor([1.0, -3.0]), weights, clip_ratio=0.2)
    torch.testing.assert_close(term.per_token, torch.tensor([-0.5, 6.0]))


def test_importance_weights_are_truncated_and_carry_no_gradient() -> None:
    old = log_of(0.5, 0.5, 0.5).requires_grad_()
    weights = importance_weights(old, log_of(1.0, 0.4, 0.1), cap=2.0)
    torch.testing.assert_close(weights, torch.tensor([0.5, 1.25, 2.0]))
    assert not weights.requires_grad


def test_value_loss_takes_the_larger_of_plain_and_clipped_error() -> None:
    values = torch.tensor([0.5, 0.5, 0.1]).requires_grad_()
    term = clipped_value_loss(values, torch.zeros(3), torch.tensor([1.0, 0.0, 1.0]), value_clip=0.2)
    torch.testing.assert_close(term.per_token, torch.tensor([0.32, 0.125, 0.405]))
    assert term.is_clipped.tolist() == [True, False, False]
    term.per_token.sum().backward()
    torch.testing.assert_close(values.grad, torch.tensor([0.0, 0.5, -0.9]))
