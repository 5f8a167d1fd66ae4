"""Weights through Ray's object store: the cargo is the packed weights themselves.

The cargo is the return value of a call on the trainer's worker. So it belongs to the controller's process and outlives
the worker that made it, but it lies in the store of that worker's node: until another node has fetched it, it is gone
when the node is. On one machine all processes map the same memory; a replica copies it once out of that memory, which
is read-only, and once more into its engine.
"""

from __future__ import annotations

from collections.abc import Collection

from rlserve.weights.config import ObjectStoreConfig
from rlserve.weights.packing import PackedWeights
from rlserve.weights.transports.base import ReceivingEnd, SendingEnd, Transport


class ObjectStoreSendingEnd(SendingEnd):
    """Hands the weights over; Ray stores what a call returns."""

    def __init__(self, config: ObjectStoreConfig) -> None:
        pass

    def send(self, packed: PackedWeights) -> PackedWeights:
        return packed

    def discard(self, needed: Collection[int]) -> None:
        """Nothing to do: Ray frees a version once the controller and all receivers have let go of it."""


class ObjectStoreReceivingEnd(ReceivingEnd):
    """Takes them as Ray maps them."""

    def __init__(self, config: ObjectStoreConfig) -> None:
        pass

    def receive(self, cargo: PackedWeights) -> PackedWeights:
        return cargo


OBJECT_STORE = Transport(sending=ObjectStoreSendingEnd, receiving=ObjectStoreReceivingEnd)
