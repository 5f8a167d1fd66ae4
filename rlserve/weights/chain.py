"""What replicas need to get to the newest version: the last one that was sent whole, and what changed since.

::

    anchor ◄─ delta ◄─ delta ◄─ delta      a newcomer takes all four,
      7         8        10       11       a replica that holds 8 the last two; 9 was never sent

What always holds: the first link is whole, and each of the others is based on the one before it, at least in some of
its parts. Pure bookkeeping: cargo is kept, never opened.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rlserve.weights.offer import Holding, Offer


@dataclass(frozen=True, kw_only=True, eq=False)
class Link:
    """One version as it was sent, whole or as what changed."""

    offer: Offer
    cargo: tuple[Any, ...]
    """Of the offer's parts, in their order; only receivers open it."""


class WeightChain:
    """The links that are kept."""

    def __init__(self, anchor_every: int) -> None:
        """Every ``anchor_every``-th version that is sent is whole; 1: all are."""
        self._anchor_every = anchor_every
        self._links: tuple[Link, ...] = ()
        self._ended = False

    @property
    def versions(self) -> tuple[int, ...]:
        """All that some replica may still need."""
        return tuple(link.offer.version for link in self._links)

    @property
    def next_base(self) -> Offer | None:
        """What the next version may be based on, part by part; None where it must be whole."""
        if self._ended or not self._links or len(self._links) >= self._anchor_every:
            return None
        return self._links[-1].offer

    def add(self, link: Link) -> None:
        """A newer version was sent, or the newest anew and whole. A whole one begins the chain anew."""
        base = link.offer.base
        if base is None:
            self._links, self._ended = (link,), False
            return
        newest = self._links[-1].offer.holding if self._links else None
        assert base == newest, f"version {link.offer.version} of the weights is based on {base}, newest is {newest}"
        self._links = (*self._links, link)

    def end(self) -> None:
        """A link is gone, or was refused: the next version is whole."""
        self._ended = True

    def links_for(self, holding: Holding | None) -> tuple[Link, ...]:
        """What brings a replica to the newest version, in the order in which it is to be applied; nothing for one that
        has it. ``holding`` is None for one that has nothing, or whose weights are not to be built on."""
        if holding is None or not self._links:
            return self._links
        if holding.version >= self._links[-1].offer.version:
            return ()
        held = [number for number, link in enumerate(self._links) if link.offer.holding == holding]
        return self._links[held[0] + 1 :] if held else self._links
