"""The sender: a trainer's half, in its worker.

A snapshot is the only thing that the training waits for. It is compared, coded, packed and sent by another thread than
the one that steps the trainer.

::

    snapshot ─► share of the elements that changed since the last one sent (a sample)
                    │ base asked for is that one, and few have changed      │ else
                    ▼                                                       │
                what changed, coded ── not small enough? ──────────────────►│
                    ▼                                                       ▼
               sent as a delta                                         sent whole

When few are few enough, ``delta/worth.py`` says.
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from rlserve.errors import WorkerFailedError
from rlserve.weights.contents.base import Contents
from rlserve.weights.delta.codec import encode_delta
from rlserve.weights.delta.worth import changed_share, is_worth_coding, is_worth_sending
from rlserve.weights.offer import FINGERPRINT_MASK, Holding, SentPart
from rlserve.weights.packing import PackedWeights, Snapshot, take_snapshot
from rlserve.weights.reused_memory import ReusedMemory
from rlserve.weights.transports.base import SendingEnd


@dataclass(frozen=True, kw_only=True, eq=False)
class _Sent:
    """What was sent last."""

    snapshot: Snapshot
    holding: Holding


class Sender:
    """Keeps snapshots until they are sent or dropped: at most the one that is being sent, and the next. With deltas, it
    keeps the one that it sent last too, to compare the next one with."""

    def __init__(self, name: str, end: SendingEnd, contents: Contents, *, keeps_last: bool) -> None:
        """``name`` is the slot's. ``keeps_last``: deltas may be asked for."""
        self._name = name
        self._end = end
        self._dtype = contents.dtype
        self._unsent_fingerprint = contents.unsent_fingerprint
        self._keeps_last = keeps_last
        self._is_retired = False
        self._snapshots: dict[int, Snapshot] = {}
        self._last: _Sent | None = None
        self._memory = ReusedMemory(end.new_block)
        self._lock = threading.Lock()
        self._sending = threading.Lock()
        """A version is compared with the one that was sent before it: one at a time."""

    def take_snapshot(self, version: int, tensors: Mapping[str, torch.Tensor]) -> None:
        """Copy what this sender is to send of a version. The caller sees to it that ``tensors`` do not change
        meanwhile."""
        snapshot = take_snapshot(version, tensors, self._dtype, self._memory)
        with self._lock:
            self._snapshots[version] = snapshot
            self._is_retired = False

    def drop_snapshot(self, version: int) -> None:
        """Free a snapshot that is not going to be sent."""
        with self._lock:
            self._snapshots.pop(version, None)

    def send(self, version: int, base: Holding | None, needed: Collection[int]) -> tuple[Any, SentPart]:
        """Send a snapshot; returns the transport's cargo and what was sent.

        It is sent as what changed since ``base``, if that is what this sender sent last and a delta pays; else whole.
        What was sent of versions that are neither ``needed`` nor this one is removed: nobody takes them any more.

        Raises:
            WorkerFailedError: there is no such snapshot, or it cannot be sent.
        """
        with self._lock:
            snapshot = self._snapshots.pop(version, None)
        if snapshot is None:
            raise WorkerFailedError(f"{self._name} has no snapshot of version {version} of the weights")
        with self._sending:
            packed, share = self._packed(snapshot, base)
            fingerprint = snapshot.fingerprint + self._unsent_fingerprint & FINGERPRINT_MASK
            holding = Holding(version=version, fingerprint=fingerprint)
            cargo = self._end.send(packed)
            with self._lock:
                keeps = self._keeps_last and not self._is_retired
                self._last = _Sent(snapshot=snapshot, holding=holding) if keeps else None
            self._end.discard({*needed, version})
        part = SentPart(
            sender=self._name,
            num_bytes=packed.manifest.num_bytes,
            num_whole_bytes=snapshot.payload.nbytes,
            fingerprint=holding.fingerprint,
            base=packed.manifest.base,
            changed_share=share,
        )
        return cargo, part

    def retire(self) -> None:
        """Free what was sent last, until the next snapshot: another will send the next version."""
        with self._lock:
            self._last, self._is_retired = None, True
        self._end.retire()
        self._memory.free()

    def discard_all(self) -> None:
        """Remove all that was sent: the run is over."""
        self._end.discard(())

    def _packed(self, snapshot: Snapshot, base: Holding | None) -> tuple[PackedWeights, float | None]:
        """As it is to be sent, and the share of elements that changed."""
        with self._lock:
            last = self._last
        if last is None or last.snapshot.entries != snapshot.entries:
            return snapshot.pack(), None
        before, payload, size = last.snapshot.payload.numpy(), snapshot.payload.numpy(), self._dtype.itemsize
        share = changed_share(before, payload, size)
        if base != last.holding or not is_worth_coding(share):
            return snapshot.pack(), share
        delta = encode_delta(before, payload, size)
        share = delta.num_changed / max(payload.nbytes // size, 1)
        if not is_worth_sending(delta.coded.nbytes, payload.nbytes):
            return snapshot.pack(), share
        return snapshot.pack_delta(torch.from_numpy(delta.coded), base), share
