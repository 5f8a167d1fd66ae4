"""Who is in the group for a parcel: decided before each broadcast, from who asks for it. Pure.

A group costs a meeting, so it stays as long as the same receivers ask; whoever is lost does not ask any more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Ask:
    """A receiver wants a parcel."""

    number: int
    """Counts what was asked of this sender."""
    member: str
    parcel: str
    generation: int
    """Of the sender's group that it is still in; 0 where it is in none."""
    time_s: float
    """When it came."""


@dataclass(frozen=True, kw_only=True)
class Standing:
    """The sender's group."""

    members: tuple[str, ...] = ()
    generation: int = 0
    """Counts the sender's groups, from 1 on."""


@dataclass(frozen=True, kw_only=True)
class Round:
    """One broadcast."""

    parcel: str
    asks: tuple[Ask, ...]
    """One a member, in order of rank: the sender is rank 0, and these follow."""
    is_same_group: bool
    """The group that stands has just these members, and all of them are still in it."""

    @property
    def members(self) -> tuple[str, ...]:
        """The receivers, in order of rank."""
        return tuple(ask.member for ask in self.asks)


def plan_round(asks: Sequence[Ask], standing: Standing, *, now_s: float, gather_s: float) -> Round | None:
    """The next broadcast; None where nobody asks, or others may yet.

    Args:
        asks: not answered yet. Of several by one member, the last counts.
        standing: the group of the last broadcast, if it did not fail.
        gather_s: how long the first who asks waits for others, unless all of the group that stands are there.
    """
    waiting = {ask.member: ask for ask in sorted(asks, key=lambda ask: ask.number)}
    if not waiting:
        return None
    first = min(waiting.values(), key=lambda ask: ask.number)
    alike = tuple(waiting[member] for member in sorted(waiting) if waiting[member].parcel == first.parcel)
    is_complete = tuple(ask.member for ask in alike) == standing.members
    if not is_complete and now_s - first.time_s < gather_s:
        return None
    are_in_it = all(ask.generation == standing.generation for ask in alike)
    return Round(parcel=first.parcel, asks=alike, is_same_group=is_complete and are_in_it)
