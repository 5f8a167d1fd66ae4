"""What stands in for an engine where weights arrive."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from rlserve.engine.weights.fingerprint import fingerprint


class StagedCopy:
    """Copies of the tensors, as an engine's own memory has them."""

    def __init__(self, tensors: Mapping[str, torch.Tensor]) -> None:
        self.tensors = {name: tensor.clone() for name, tensor in tensors.items()}
        self.fingerprint = fingerprint(self.tensors.items())
