"""Every version is the whole model."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from rlserve.weights.contents.base import Contents


class WholeModel(Contents):
    """All weights, in the engines' type."""

    def __init__(self, engine_dtype: torch.dtype) -> None:
        self.dtype = engine_dtype
        self.unsent_fingerprint = 0

    def whole(self, tensors: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
        return tensors

    def shift(self, tensors: Mapping[str, torch.Tensor], whole: Mapping[str, torch.Tensor]) -> int:
        return 0

    def num_engine_bytes(self, tensors: Mapping[str, torch.Tensor]) -> int:
        return sum(tensor.numel() for tensor in tensors.values()) * self.dtype.itemsize
