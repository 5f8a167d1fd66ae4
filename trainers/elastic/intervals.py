"""Sets of elements of a vector, as disjoint intervals in rising order."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from itertools import accumulate
from typing import NamedTuple


class Interval(NamedTuple):
    """Elements ``first`` … ``end - 1``."""

    first: int
    end: int

    @property
    def num_elements(self) -> int:
        """None where it ends where it begins."""
        return self.end - self.first

    @property
    def elements(self) -> slice:
        """For indexing the vector."""
        return slice(self.first, self.end)


Intervals = tuple[Interval, ...]


def union(intervals: Iterable[Interval]) -> Intervals:
    """The elements of any of them, in as few intervals as possible."""
    joined: list[Interval] = []
    for interval in sorted(interval for interval in intervals if interval.num_elements):
        if joined and interval.first <= joined[-1].end:
            joined[-1] = Interval(joined[-1].first, max(joined[-1].end, interval.end))
        else:
            joined.append(interval)
    return tuple(joined)


def intersection(one: Interval, other: Interval) -> Interval:
    """The elements of both; perhaps none."""
    first = max(one.first, other.first)
    return Interval(first, max(first, min(one.end, other.end)))


def difference(wanted: Iterable[Interval], present: Iterable[Interval]) -> Intervals:
    """The elements of ``wanted`` that are not in ``present``."""
    left = union(wanted)
    for taken in union(present):
        parts = [
            part
            for interval in left
            for part in (
                Interval(interval.first, min(interval.end, taken.first)),
                Interval(max(interval.first, taken.end), interval.end),
            )
        ]
        left = union(part for part in parts if part.first < part.end)
    return left


def has_single(sets: Iterable[Iterable[Interval]]) -> bool:
    """Whether some element is in one of the sets alone."""
    changes: Counter[int] = Counter()
    for intervals in sets:
        for interval in union(intervals):
            changes[interval.first] += 1
            changes[interval.end] -= 1
    return 1 in accumulate(changes[at] for at in sorted(changes))
