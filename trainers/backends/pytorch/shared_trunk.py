"""A critic that shares the policy's trunk: a value head beside the output head, on the same hidden states.

    inputs ──► trunk ──► states [a, H] ──┬─► output head ──► log-probabilities ──► policy's loss
                 ▲                       └─► value head ───► values ─────────────► loss of values
                 └── backward, once ◄── sum of both heads' gradients [a, H]

Legend: a response tokens of a pass, H hidden size.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from rlserve.trainers.backends.pytorch.head import Autocast
from rlserve.trainers.backends.pytorch.models import new_value_head, values_of


class SharedTrunkCritic(nn.Module):
    """What is a critic's own if it shares the trunk."""

    def __init__(self, hidden_size: int, seed: int) -> None:
        super().__init__()
        self.value_head = new_value_head(hidden_size, seed)


class TrunkValuer:
    """Says values as a critic with a backbone of its own does; no module, since the policy is trained as such."""

    def __init__(self, policy: Any, value_head: nn.Module) -> None:
        self.backbone = policy.base_model
        self.value_head = value_head


def values_backward(
    value_head: nn.Module, states_aH: Tensor, loss: Callable[[Tensor], Tensor], *, autocast: Autocast
) -> tuple[Tensor, Tensor]:
    """Add the gradient of a loss of values to the head's own; return the values [a], without gradient, and the gradient
    of the states [a, H], which has not gone further."""
    own_aH = states_aH.detach().requires_grad_()
    with autocast():
        values_a = values_of(value_head, own_aH)
    loss(values_a).backward()  # type: ignore[no-untyped-call]
    assert own_aH.grad is not None
    return values_a.detach(), own_aH.grad
