"""The receiver: a replica's half, in its worker.

It brings a version into memory beside the running model and checks it; swapping it in is up to whoever owns the engine.
A replica of several ranks may have one receiver, whose rank hands each other rank its part, or one on each rank.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from rlserve.errors import WeightsRefusedError
from rlserve.weights.offer import Offer
from rlserve.weights.packing import unpack
from rlserve.weights.transports.base import ReceivingEnd


class Receiver:
    """Takes what is offered. May be called from several threads."""

    def __init__(self, end: ReceivingEnd) -> None:
        self._end = end

    def receive(self, offer: Offer, cargo: Sequence[Any]) -> dict[str, torch.Tensor]:
        """The tensors of all parts by name.

        Raises:
            WeightsRefusedError: damaged, of another version than offered, or a tensor that is in two parts.
            ArgumentLostError: what was sent is gone; it can be sent again.
        """
        assert offer.base_version is None, "deltas are offered to nobody yet"
        tensors: dict[str, torch.Tensor] = {}
        for part, sent in zip(offer.parts, cargo, strict=True):
            packed = self._end.receive(sent)
            if packed.manifest.version != offer.version:
                raise WeightsRefusedError(
                    f"{part.sender} sent version {packed.manifest.version} of the weights, offered was {offer.version}"
                )
            found = unpack(packed)
            if twice := sorted(tensors.keys() & found.keys()):
                raise WeightsRefusedError(f"version {offer.version} of the weights has {twice[0]} in two parts")
            tensors |= found
        return tensors
