"""The sender: a trainer's half, in its worker.

A snapshot is the only thing that the training waits for. It is packed and sent by another thread than the one that
steps the trainer.
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Mapping
from typing import Any

import torch

from rlserve.errors import WorkerFailedError
from rlserve.weights.offer import SentPart
from rlserve.weights.packing import Snapshot, take_snapshot
from rlserve.weights.transports.base import SendingEnd


class Sender:
    """Keeps snapshots until they are sent or dropped: at most the one that is being sent, and the next."""

    def __init__(self, name: str, end: SendingEnd, dtype: torch.dtype) -> None:
        """``name`` is the slot's. ``dtype`` is that of the engines."""
        self._name = name
        self._end = end
        self._dtype = dtype
        self._snapshots: dict[int, Snapshot] = {}
        self._lock = threading.Lock()

    def take_snapshot(self, version: int, tensors: Mapping[str, torch.Tensor]) -> None:
        """Copy what this sender is to send of a version. The caller sees to it that ``tensors`` do not change
        meanwhile."""
        snapshot = take_snapshot(version, tensors, self._dtype)
        with self._lock:
            self._snapshots[version] = snapshot

    def drop_snapshot(self, version: int) -> None:
        """Free a snapshot that is not going to be sent."""
        with self._lock:
            self._snapshots.pop(version, None)

    def send(self, version: int, needed: Collection[int]) -> tuple[Any, SentPart]:
        """Send a snapshot, and free it; returns the transport's cargo and what was sent.

        What was sent of versions that are neither ``needed`` nor this one is removed: nobody takes them any more.

        Raises:
            WorkerFailedError: there is no such snapshot, or it cannot be sent.
        """
        with self._lock:
            snapshot = self._snapshots.pop(version, None)
        if snapshot is None:
            raise WorkerFailedError(f"{self._name} has no snapshot of version {version} of the weights")
        packed = snapshot.pack()
        part = SentPart(sender=self._name, num_bytes=packed.manifest.num_bytes, fingerprint=snapshot.fingerprint())
        cargo = self._end.send(packed)
        self._end.discard({*needed, version})
        return cargo, part

    def discard_all(self) -> None:
        """Remove all that was sent: the run is over."""
        self._end.discard(())
