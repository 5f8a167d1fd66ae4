"""The contract of a transport: one end in the worker that sends, one in each worker that receives.

What the sending end returns is its *cargo*: whatever the receiving ends need to find what was sent. It may be the
weights themselves, the name of a file, the address of a group or a handle of memory. It must survive pickling. The
controller keeps it in Ray's object store and passes it on unopened, to any number of receivers and at any time.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from rlserve.weights.packing import PackedWeights
from rlserve.weights.reused_memory import Block, HostBlock


class SendingEnd(ABC):
    """In a trainer's worker. Calls come one at a time, while the trainer may be stepping."""

    def new_block(self, num_bytes: int) -> Block:
        """Memory that snapshots are taken into, for any thread: the host's, unless the transport sends from another."""
        return HostBlock(num_bytes)

    @abstractmethod
    def send(self, packed: PackedWeights) -> Any:
        """Make a version available to receivers, whole or as what changed: bytes are bytes. Returns the cargo. The
        payload is not changed afterwards.

        Raises:
            WorkerFailedError: it cannot be sent from here; nothing of it can be taken for a version.
        """

    @abstractmethod
    def discard(self, needed: Collection[int]) -> None:
        """Remove what this run sent of all versions but those ``needed``, whoever sent it."""

    def retire(self) -> None:  # noqa: B027
        """Another will send the next version. What was sent may stay, or go if it holds memory that the worker needs
        for its next role: then it is sent again by another."""


class ReceivingEnd(ABC):
    """In a replica's worker. Calls may come from several threads."""

    @abstractmethod
    def receive(self, cargo: Any) -> PackedWeights:
        """What was sent; whether it is undamaged is checked by whoever opens it.

        Raises:
            ArgumentLostError: it is gone; it can be sent again.
        """


ConfigT = TypeVar("ConfigT")


@dataclass(frozen=True, kw_only=True)
class Transport(Generic[ConfigT]):
    """How to make both ends from its configuration."""

    sending: Callable[[ConfigT], SendingEnd]
    receiving: Callable[[ConfigT], ReceivingEnd]
