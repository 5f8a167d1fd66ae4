"""The receiver: a replica's half, in its worker.

It brings a version into memory beside the running model and checks it; swapping it in is up to whoever owns the engine.
A replica of several ranks may have one receiver, whose rank hands each other rank its part, or one on each rank.

::

    offers, cargo ─► all checksums ─► whole: in place of what is kept  ┐
      (a chain)                       delta: applied to what is kept,  ├─► fingerprint ─► views of it, for the engine
                                             if that is its base       ┘   (of deltas)

What is kept is what was received last, or nothing: where something fails after the first write, it is dropped, and only
a whole version fits.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from rlserve.engine.weights.fingerprint import fingerprint
from rlserve.errors import WeightsRefusedError
from rlserve.weights.delta.codec import apply_delta
from rlserve.weights.offer import Holding, Offer, SentPart
from rlserve.weights.packing import PackedWeights, TensorEntry, tensors_in
from rlserve.weights.transports.base import ReceivingEnd


@dataclass(frozen=True, kw_only=True, eq=False)
class _Part:
    """The tensors of one sender, as they are here."""

    holding: Holding
    entries: tuple[TensorEntry, ...]
    payload: NDArray[np.uint8]
    """Writable, and nobody else's."""


class Receiver:
    """Takes what is offered, one call at a time."""

    def __init__(self, end: ReceivingEnd, *, keeps_last: bool) -> None:
        """``keeps_last``: deltas may be offered, so what was received last stays in memory."""
        self._end = end
        self._keeps_last = keeps_last
        self._kept: dict[str, _Part] = {}
        """By sender."""
        self._lock = threading.Lock()

    def receive(self, offers: Sequence[Offer], cargo: Sequence[Any]) -> dict[str, torch.Tensor]:
        """The tensors by name, at the version of the last offer. They are valid until the next call.

        Args:
            offers: a whole version or what changed since the one that was received last, and then what changed since.
            cargo: of all their parts, in their order.

        Raises:
            WeightsRefusedError: damaged, of another version or base than offered, changes to something that is not
                here, or a tensor that is in two parts. A whole version may still be taken.
            ArgumentLostError: what was sent is gone; it can be sent again.
        """
        with self._lock:
            links = self._opened(offers, iter(cargo))
            kept, self._kept = self._kept, {}
            for offer, link in zip(offers, links, strict=True):
                kept = {part.sender: _taken(kept, offer, part, packed) for part, packed in link}
            tensors = _joined(kept, offers[-1])
            if self._keeps_last:
                self._kept = kept
            return tensors

    def drop(self) -> None:
        """Free what is kept: the engine gives its weights up too."""
        with self._lock:
            self._kept = {}

    def _opened(self, offers: Sequence[Offer], cargo: Iterator[Any]) -> list[list[tuple[SentPart, PackedWeights]]]:
        """What was sent, link by link and part by part; all of it is checked before anything is written."""
        links = []
        for offer in offers:
            link = []
            for part in offer.parts:
                packed = self._end.receive(next(cargo))
                found = packed.manifest
                if (found.version, found.base) != (offer.version, part.base):
                    raise WeightsRefusedError(
                        f"{part.sender} sent version {found.version} of the weights{_since(found.base)}, "
                        f"offered was {offer.version}{_since(part.base)}"
                    )
                packed.check()
                link.append((part, packed))
            links.append(link)
        return links


def _taken(kept: Mapping[str, _Part], offer: Offer, part: SentPart, packed: PackedWeights) -> _Part:
    """A part at the version of the offer, in the memory of what was kept of it where that is possible."""
    before = kept.get(part.sender)
    holding = Holding(version=offer.version, fingerprint=part.fingerprint)
    if part.base is None:
        payload = packed.payload
        if not payload.flags.writeable and before is not None and before.payload.nbytes == payload.nbytes:
            np.copyto(before.payload, payload)
            payload = before.payload
        elif not payload.flags.writeable:
            payload = payload.copy()
        return _Part(holding=holding, entries=packed.manifest.entries, payload=payload)
    if before is None or before.holding != part.base:
        held = "nothing" if before is None else f"version {before.holding.version} ({before.holding.fingerprint:016x})"
        raise WeightsRefusedError(
            f"version {offer.version} of the weights is what changed{_since(part.base)} "
            f"({part.base.fingerprint:016x}); here is {held}"
        )
    apply_delta(packed.payload, before.payload)
    return _Part(holding=holding, entries=before.entries, payload=before.payload)


def _joined(parts: Mapping[str, _Part], offer: Offer) -> dict[str, torch.Tensor]:
    """The tensors of all parts. A whole is proved by its checksum, the result of a delta by its fingerprint."""
    tensors: dict[str, torch.Tensor] = {}
    for part in parts.values():
        found = dict(tensors_in(part.payload, part.entries))
        if twice := sorted(tensors.keys() & found.keys()):
            raise WeightsRefusedError(f"version {offer.version} of the weights has {twice[0]} in two parts")
        tensors |= found
    if offer.base is not None and (found_sum := fingerprint(tensors.items())) != offer.fingerprint:
        raise WeightsRefusedError(
            f"version {offer.version} of the weights has fingerprint {found_sum:016x} after what changed was applied, "
            f"must be {offer.fingerprint:016x}"
        )
    return tensors


def _since(base: Holding | None) -> str:
    return "" if base is None else f" since version {base.version}"
