"""The contract: what share of the machines that are asked for can be had, and when that changes."""

from __future__ import annotations

import bisect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from rlserve.errors import check_fields


@dataclass(frozen=True, kw_only=True)
class Availability:
    """A step function of time, which begins anew at its end."""

    times_s: tuple[float, ...]
    """When the share changes, ascending from 0."""
    shares: tuple[float, ...]
    """From each of these times on, 0 to 1."""
    duration_s: float
    """Of the whole; above the last of the times."""

    def __post_init__(self) -> None:
        ascending = all(earlier < later for earlier, later in pairwise(self.times_s))
        check_fields(
            self,
            {
                "times_s": bool(self.times_s and self.times_s[0] == 0 and ascending) or "must ascend from 0",
                "shares": (len(self.shares) == len(self.times_s) and all(0 <= share <= 1 for share in self.shares))
                or "must be as many as times_s, each from 0 to 1",
                "duration_s": self.duration_s > self.times_s[-1] or "must be above the last of times_s",
            },
        )

    def course(self, offset_s: float) -> Iterator[tuple[float, float]]:
        """Pairs of a wait in seconds and the share that holds after it, without end. The first wait is 0: what holds
        at ``offset_s`` of the trace, from which on it is followed."""
        now_s = offset_s % self.duration_s
        index = bisect.bisect_right(self.times_s, now_s) - 1
        wait_s = 0.0
        while True:
            yield wait_s, self.shares[index]
            index += 1
            if index < len(self.times_s):
                next_s = self.times_s[index]
                wait_s, now_s = next_s - now_s, next_s
            else:
                wait_s, index, now_s = self.duration_s - now_s, 0, 0.0

    @property
    def mean_share(self) -> float:
        """Over the whole time."""
        ends_s = (*self.times_s[1:], self.duration_s)
        spans_s = (end_s - begin_s for begin_s, end_s in zip(self.times_s, ends_s, strict=True))
        return sum(share * span_s for share, span_s in zip(self.shares, spans_s, strict=True)) / self.duration_s


@dataclass(frozen=True, kw_only=True)
class Zone:
    """Gangs whose machines come from one place, and so are to be had or not together."""

    name: str
    gang_ids: tuple[str, ...]
    availability: Availability
    offset_s: float = 0.0
    """Of the trace, at which the run begins."""


def spread(gang_ids: Sequence[str], places: Mapping[str, Availability]) -> tuple[Zone, ...]:
    """The gangs, evenly over the places."""
    return tuple(
        Zone(name=name, gang_ids=tuple(gang_ids[index :: len(places)]), availability=availability)
        for index, (name, availability) in enumerate(places.items())
    )
