"""The contract of what a version consists of."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

import torch


class Contents(ABC):
    """Known to both ends alike: the trainer's half of a worker and its replica's."""

    dtype: torch.dtype
    """Of the tensors that travel."""
    unsent_fingerprint: int
    """Of what belongs to every version and does not travel; both ends have it."""

    @abstractmethod
    def whole(self, tensors: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
        """The whole model, as an engine takes it, from what has travelled.

        Raises:
            WeightsRefusedError: it fits no model of this kind.
        """

    @abstractmethod
    def shift(self, tensors: Mapping[str, torch.Tensor], whole: Mapping[str, torch.Tensor]) -> int:
        """What the published fingerprint of a version has more than that of its whole model, modulo 2^64.

        Added to the fingerprint of what an engine has loaded, it gives the published one only if all of ``tensors``
        arrived as published and all of ``whole`` was loaded.
        """

    @abstractmethod
    def num_engine_bytes(self, tensors: Mapping[str, torch.Tensor]) -> int:
        """Of the whole model in the engines' type."""
