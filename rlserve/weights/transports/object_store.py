"""Weights through Ray's object store: the cargo is the packed weights themselves.

The cargo is the return value of a call on the trainer's worker. So it belongs to the controller's process and outlives
the worker that made it, but it lies in the store of that worker's node: until another node has fetched it, it is gone
when the node is. On one machine all processes map the same memory; a replica copies it once out of that memory, which
is read-only, and once more into its engine.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from rlserve.weights.config import ObjectStoreConfig
from rlserve.weights.packing import Manifest, PackedWeights
from rlserve.weights.transports.base import ReceivingEnd, SendingEnd, Transport


@dataclass(frozen=True, kw_only=True, eq=False)
class StoredWeights:
    """A version as it lies in the store."""

    manifest: Manifest
    payload: NDArray[np.uint8]
    """[num_bytes], read-only. An array, since Ray maps the memory of arrays, and copies that of tensors."""


class ObjectStoreSendingEnd(SendingEnd):
    """Hands the weights over; Ray stores what a call returns."""

    def __init__(self, config: ObjectStoreConfig) -> None:
        pass

    def send(self, packed: PackedWeights) -> StoredWeights:
        payload = packed.payload.numpy().view()
        payload.flags.writeable = False
        return StoredWeights(manifest=packed.manifest, payload=payload)

    def discard(self, needed: Collection[int]) -> None:
        """Nothing to do: Ray frees a version once the controller and all receivers have let go of it."""


class ObjectStoreReceivingEnd(ReceivingEnd):
    """Takes them as Ray maps them."""

    def __init__(self, config: ObjectStoreConfig) -> None:
        pass

    def receive(self, cargo: StoredWeights) -> PackedWeights:
        payload = torch.from_numpy(np.asarray(_Unlocked(cargo.payload)))
        return PackedWeights(manifest=cargo.manifest, payload=payload)


class _Unlocked:
    """The same memory as an array that may be written to, which keeps the other alive: PyTorch has no tensors that
    refuse it, and takes no other array without a warning."""

    def __init__(self, payload: NDArray[np.uint8]) -> None:
        self._payload = payload
        interface = payload.__array_interface__
        self.__array_interface__ = {**interface, "data": (interface["data"][0], False)}


OBJECT_STORE = Transport(sending=ObjectStoreSendingEnd, receiving=ObjectStoreReceivingEnd)
