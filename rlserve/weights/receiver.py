"""The receiver: a replica's half, in its worker.

It brings a version into memory beside the running model, has it staged there and proves it; swapping it in is up to
whoever owns the engine. A replica of several ranks may have one receiver, whose rank hands each other rank its part, or
one on each rank.

::

    offers, cargo ─► checksums of deltas ─► whole: where the transport has put it     ┐
      (a chain)                             delta: applied to a copy of what is kept, ├─► stage ─► fingerprint
                                                   if that is its base                ┘

What is kept is what was received last, or nothing: where something fails after the first write, it is dropped, and only
a whole version fits. A whole version is read where the transport has put it, and copied only once a delta comes.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import torch

from rlserve.errors import WeightsRefusedError
from rlserve.weights.delta.codec import apply_delta
from rlserve.weights.offer import Holding, Offer, SentPart
from rlserve.weights.packing import PackedWeights, TensorEntry, tensors_in
from rlserve.weights.transports.base import ReceivingEnd


class Staged(Protocol):
    """Tensors that were copied, or found fit, to be loaded."""

    @property
    def fingerprint(self) -> int:
        """Of all of them (``rlserve/engine/weights/fingerprint.py``)."""


StagedT = TypeVar("StagedT", bound=Staged)
Stage = Callable[[Mapping[str, torch.Tensor]], StagedT]


@dataclass(frozen=True, kw_only=True, eq=False)
class _Part:
    """The tensors of one sender, as they are here."""

    holding: Holding
    entries: tuple[TensorEntry, ...]
    payload: torch.Tensor
    is_own: bool
    """Whether the payload may be written to."""


class Receiver:
    """Takes what is offered, one call at a time."""

    def __init__(self, end: ReceivingEnd, *, keeps_last: bool) -> None:
        """``keeps_last``: deltas may be offered, so what was received last stays in memory."""
        self._end = end
        self._keeps_last = keeps_last
        self._kept: dict[str, _Part] = {}
        """By sender."""
        self._lock = threading.Lock()

    def receive(self, offers: Sequence[Offer], cargo: Sequence[Any], stage: Stage[StagedT]) -> StagedT:
        """Have the tensors at the version of the last offer staged, and return that once it is proved.

        Args:
            offers: a whole version or what changed since the one that was received last, and then what changed since.
            cargo: of all their parts, in their order.
            stage: takes the tensors by name, to be read alone; they are valid until the next call.

        Raises:
            WeightsRefusedError: damaged, of another version or base than offered, changes to something that is not
                here, a tensor that is in two parts, or refused by ``stage``. A whole version may still be taken.
            ArgumentLostError: what was sent is gone; it can be sent again.
        """
        with self._lock:
            links = self._opened(offers, iter(cargo))
            kept, self._kept = self._kept, {}
            for offer, link in zip(offers, links, strict=True):
                kept = {part.sender: _taken(kept, offer, part, packed) for part, packed in link}
            staged = stage(_joined(kept, offers[-1]))
            if staged.fingerprint != offers[-1].fingerprint:
                raise WeightsRefusedError(
                    f"version {offers[-1].version} of the weights arrived damaged: its fingerprint is "
                    f"{staged.fingerprint:016x}, must be {offers[-1].fingerprint:016x}"
                )
            if self._keeps_last:
                self._kept = kept
            return staged

    def drop(self) -> None:
        """Free what is kept: the engine gives its weights up too."""
        with self._lock:
            self._kept = {}

    def _opened(self, offers: Sequence[Offer], cargo: Iterator[Any]) -> list[list[tuple[SentPart, PackedWeights]]]:
        """What was sent, link by link and part by part; all deltas are checked before anything is written."""
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
    holding = Holding(version=offer.version, fingerprint=part.fingerprint)
    if part.base is None:
        entries = packed.manifest.entries
        return _Part(holding=holding, entries=entries, payload=packed.payload, is_own=packed.is_own)
    before = kept.get(part.sender)
    if before is None or before.holding != part.base:
        held = "nothing" if before is None else f"version {before.holding.version} ({before.holding.fingerprint:016x})"
        raise WeightsRefusedError(
            f"version {offer.version} of the weights is what changed{_since(part.base)} "
            f"({part.base.fingerprint:016x}); here is {held}"
        )
    payload = before.payload if before.is_own else before.payload.clone()
    apply_delta(packed.payload.numpy(), payload.numpy())
    return _Part(holding=holding, entries=before.entries, payload=payload, is_own=True)


def _joined(parts: Mapping[str, _Part], offer: Offer) -> dict[str, torch.Tensor]:
    """The tensors of all parts."""
    tensors: dict[str, torch.Tensor] = {}
    for part in parts.values():
        found = dict(tensors_in(part.payload, part.entries))
        if twice := sorted(tensors.keys() & found.keys()):
            raise WeightsRefusedError(f"version {offer.version} of the weights has {twice[0]} in two parts")
        tensors |= found
    return tensors


def _since(base: Holding | None) -> str:
    return "" if base is None else f" since version {base.version}"
