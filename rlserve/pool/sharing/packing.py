"""On which nodes each run has its share of the slots of one type, so that gangs of several slots are whole. Pure.

::

    what each has ──► gangs that are missing, the largest first ──► what is left over a share is given up
                        1. where the slots are nobody's, or about to be; the tightest fit
                        2. where somebody has more than its share
                        3. where runs with smaller gangs have slots that may be lent: these move to other nodes

A run keeps what it has unless that is over its share, or stands in the way of a larger gang. As only smaller gangs move
for larger ones, and what was told before counts as done, it comes to rest.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from rlserve.pool.sharing.base import Place


@dataclass(frozen=True, kw_only=True)
class Part:
    """A run's, in slots of one type."""

    run_id: str
    share: int
    gang_size: int = 1
    priority: int = 0
    has: Mapping[Place, int] = field(default_factory=dict)
    """What it will have once it has done what it was told last."""
    lendable: Mapping[Place, int] = field(default_factory=dict)
    """Of these, what may be emptied at once."""
    leaving: Mapping[Place, int] = field(default_factory=dict)
    """Of these, what is being emptied."""


@dataclass(frozen=True, kw_only=True)
class _Room:
    """A place where a gang could be."""

    place: Place
    given_up: tuple[tuple[str, int], ...]
    """By whom, and how many slots."""
    num_moved: int
    """Of these, those of runs that have no more than their share."""


def pack(parts: Sequence[Part], slots: Mapping[Place, int], free: Mapping[Place, int]) -> dict[str, dict[Place, int]]:
    """Where each run is to have its slots, by run: no more than its share, and as many whole gangs of it as have room.

    Args:
        parts: of all runs, in any order that lasts.
        slots: of each node.
        free: of these, what nobody has this very moment; where a gang fits in either of two places, it is put there.
    """
    packing = _Packing(parts, slots, free)
    for part in sorted(parts, key=lambda part: (-part.gang_size, -part.priority)):
        packing.fill(part)
    for part in parts:
        packing.release(part)
    return {part.run_id: dict(packing.has[part.run_id]) for part in parts}


class _Packing:
    """What each run has so far, by node."""

    def __init__(self, parts: Sequence[Part], slots: Mapping[Place, int], free: Mapping[Place, int]) -> None:
        self._parts = {part.run_id: part for part in parts}
        self._free_now = free
        self.has = {part.run_id: Counter({place: part.has.get(place, 0) for place in slots}) for part in parts}
        self._left = {place: count - sum(has[place] for has in self.has.values()) for place, count in slots.items()}

    def fill(self, part: Part) -> None:
        """Find places for the gangs that a run lacks."""
        size = part.gang_size
        while (missing := part.share - self.has[part.run_id].total()) >= size:
            room = self._best_room(part)
            if room is None:
                return
            for run_id, count in room.given_up:
                self._move(run_id, room.place, -count)
            whole = max(min(missing, self._left[room.place]) // size, 1)
            self._move(part.run_id, room.place, whole * size)

    def release(self, part: Part) -> None:
        """Give up what a run has beyond its share: what is being emptied, then what may be lent, then whatever it has,
        where most is free already."""
        size = part.gang_size
        while self.has[part.run_id].total() - part.share >= size:
            places = [place for place, count in self.has[part.run_id].items() if count >= size]
            if not places:
                return
            chosen = min(
                places,
                key=lambda place: (
                    not part.leaving.get(place, 0) >= size,
                    not self._lendable(part, place) >= size,
                    -self._left[place],
                ),
            )
            self._move(part.run_id, chosen, -size)

    def _move(self, run_id: str, place: Place, count: int) -> None:
        self.has[run_id][place] += count
        self._left[place] -= count

    def _best_room(self, part: Part) -> _Room | None:
        rooms = [room for place in self._left if (room := self._room(part, place)) is not None]
        return min(rooms, key=lambda room: self._cost(part, room), default=None)

    def _cost(self, part: Part, room: _Room) -> tuple[int, int, bool, int]:
        given_up = sum(count for _, count in room.given_up)
        is_taken = self._free_now.get(room.place, 0) < part.gang_size
        return room.num_moved, given_up, is_taken, self._left[room.place]

    def _room(self, part: Part, place: Place) -> _Room | None:
        """For a gang; None where there is none."""
        lacking, given_up, num_moved = part.gang_size - self._left[place], list[tuple[str, int]](), 0
        for other in self._givers(part):
            if lacking <= 0:
                break
            excess = self._excess(other)
            offered = self._offered(other, place, excess)
            if not excess:
                offered = offered if other.gang_size < part.gang_size else 0
            whole = min(-(-lacking // other.gang_size), offered // other.gang_size) * other.gang_size
            if whole:
                given_up.append((other.run_id, whole))
                num_moved += 0 if excess else whole
                lacking -= whole
        if lacking > 0:
            return None
        return _Room(place=place, given_up=tuple(given_up), num_moved=num_moved)

    def _givers(self, part: Part) -> Iterable[Part]:
        """Whoever has more than its share first, then the lowest priority."""
        others = [other for run_id, other in self._parts.items() if run_id != part.run_id]
        return sorted(others, key=lambda other: (self._excess(other) == 0, other.priority))

    def _excess(self, part: Part) -> int:
        return max(self.has[part.run_id].total() - part.share, 0)

    def _offered(self, part: Part, place: Place, excess: int) -> int:
        """Slots that a run can give up there: what may be lent, and what trains only where its share asks for that."""
        lendable = self._lendable(part, place)
        if not excess:
            return lendable
        all_lendable = sum(self._lendable(part, each) for each in self._left)
        return min(excess, lendable if excess <= all_lendable else self.has[part.run_id][place])

    def _lendable(self, part: Part, place: Place) -> int:
        """What was given up before was of it."""
        given_up = part.has.get(place, 0) - self.has[part.run_id][place]
        return max(min(part.lendable.get(place, 0) - given_up, self.has[part.run_id][place]), 0)
