"""How the slots of a cluster are divided among its runs. Pure: plain data in, plain data out.

::

    floors ──► what trains stays ──► what runs can use, ──► what nobody can use
                                     the highest priority    stays where it is, or
                                     first                   goes by priority

Each pass hands out what the ones before have left, in whole gangs. So nobody is below its floor, a run with a higher
priority has what it can use before a lower one has any, and whatever a run loses for that rolls out: what trains is
taken only where a floor needs it. A run that has not begun gets its floor whole, or nothing: floors of runs that go on
are never taken for it, whatever its priority.

The result depends on what runs *have* in two passes only, and both leave it where it is: dividing again after slots
have changed hands as the result says changes nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby


@dataclass(frozen=True, kw_only=True)
class Wish:
    """A run's, in slots of one type."""

    run_id: str
    priority: int = 0
    floor: int = 0
    """In whole gangs, as all that follows should be."""
    useful: int | None = None
    """That it could use now; None is as many as it gets."""
    most: int | None = None
    """That it takes at most; None is without a bound."""
    held: int = 0
    num_lendable: int = 0
    """Of ``held``, what may be asked back for what another could use."""
    gang_size: int = 1


@dataclass(frozen=True, kw_only=True)
class Asking:
    """A run that has not begun: its wishes by type."""

    run_id: str
    priority: int
    floors: Mapping[str, int]


def admitted(
    begun: Iterable[Mapping[str, int]], asking: Sequence[Asking], slots: Mapping[str, int]
) -> tuple[Asking, ...]:
    """Which of the runs that ask may begin: those whose floors fit beside the floors of all that have.

    Args:
        begun: floors by type of each run that goes on.
        asking: those that have not begun, the first come first.
        slots: of the cluster, by type.
    """
    left = Counter(slots)
    for floors in begun:
        left.subtract(floors)
    found = []
    for each in sorted(asking, key=lambda each: -each.priority):
        if any(each.floors.values()) and all(count <= left[name] for name, count in each.floors.items()):
            left.subtract(each.floors)
            found.append(each)
    return tuple(found)


def shares_of(wishes: Sequence[Wish], num_slots: int) -> dict[str, int]:
    """How many of ``num_slots`` slots of one type each run is to have, by run; ``wishes`` are those of runs that have
    begun or may begin, the first come first."""
    division = _Division(num_slots, [wish.run_id for wish in wishes])
    ranked = sorted(wishes, key=lambda wish: -wish.priority)
    for wish in ranked:
        division.raise_to(wish, wish.floor)
    for wish in ranked:
        division.raise_to(wish, _bounded(wish, wish.held - wish.num_lendable))
    _by_priority(division, ranked, lambda wish: _bounded(wish, num_slots if wish.useful is None else wish.useful))
    for wish in ranked:
        division.raise_to(wish, _bounded(wish, wish.held))
    _by_priority(division, ranked, lambda wish: _bounded(wish, num_slots))
    return division.shares


class _Division:
    """What each has so far, and what is left."""

    def __init__(self, num_slots: int, run_ids: Iterable[str]) -> None:
        self._left = num_slots
        self.shares = dict.fromkeys(run_ids, 0)

    def raise_to(self, wish: Wish, count: int) -> None:
        """Give a run what it lacks to ``count`` slots, or what is left, in whole gangs."""
        more = min(count - self.shares[wish.run_id], self._left)
        if more >= wish.gang_size:
            self._give(wish, more // wish.gang_size * wish.gang_size)

    def share_evenly(self, wishes: Sequence[Wish], limit: Callable[[Wish], int]) -> None:
        """Give gang by gang to whoever has least, as long as it is below its limit."""
        while able := [
            wish for wish in wishes if self.shares[wish.run_id] + wish.gang_size <= limit(wish) and self._fits(wish)
        ]:
            poorest = min(able, key=lambda wish: self.shares[wish.run_id])
            self._give(poorest, poorest.gang_size)

    def _fits(self, wish: Wish) -> bool:
        return wish.gang_size <= self._left

    def _give(self, wish: Wish, count: int) -> None:
        self.shares[wish.run_id] += count
        self._left -= count


def _by_priority(division: _Division, ranked: Sequence[Wish], limit: Callable[[Wish], int]) -> None:
    for _, level in groupby(ranked, key=lambda wish: wish.priority):
        division.share_evenly(list(level), limit)


def _bounded(wish: Wish, count: int) -> int:
    return count if wish.most is None else min(count, wish.most)
