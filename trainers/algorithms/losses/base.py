"""The contract of a policy loss: a function of some tokens and the configuration.

Legend: a tokens. All tensors are [a] float32. ``old`` is the trainer's own policy at the start of the step,
``behaviour`` the distribution that the engine sampled from.

Which policy is trained: the one that was sampled, softmax(logits / temperature) over the whole vocabulary. New,
old and reference log-probabilities in the losses are all of that policy, so at temperature 1 they are the raw
ones. Top-k and top-p are not part of it: they only change what was sampled, like staleness and the engine's
arithmetic do, and the importance weight old / behaviour corrects for all three.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from rlserve.trainers.algorithms.base import PolicyTokens
from rlserve.trainers.algorithms.config import UpdateConfig


@dataclass(frozen=True, kw_only=True)
class LossTerm:
    """A loss per token, and where clipping took its gradient away."""

    per_token: Tensor
    """[a]"""
    is_clipped: Tensor
    """[a] bool."""


PolicyLossFunction = Callable[[PolicyTokens, UpdateConfig], LossTerm]
"""What is minimised of the surrogate objective, before importance weights, KL divergence and entropy."""
