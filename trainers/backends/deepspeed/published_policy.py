"""The whole policy in the host memory of one rank, where no rank holds it otherwise.

Under stage 3 it takes all ranks to put the policy together. They do so after every step, for rank 0, so that it can
send, save and score the policy by itself.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from rlserve.trainers.backends.pytorch.models import load_policy


class PublishedPolicy:
    """Of a step boundary."""

    def __init__(self, model_path: str) -> None:
        self.model: Any = load_policy(model_path, load_weights=False)
        self.parameters: dict[str, Tensor] = {
            name: parameter.requires_grad_(False) for name, parameter in self.model.named_parameters()
        }

    @torch.no_grad()
    def take(self, parameters: Iterable[tuple[str, Tensor]]) -> None:
        """Overwrite the parameters, one at a time."""
        for name, parameter in parameters:
            self.parameters[name].copy_(parameter)
