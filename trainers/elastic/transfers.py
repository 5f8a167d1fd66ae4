"""What has to be sent, and by whom, so that every rank has what it should hold: a pure function."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rlserve.trainers.base import Traffic
from rlserve.trainers.elastic.intervals import Interval, Intervals, difference, intersection, union

_ELEMENT_BYTES = 4


@dataclass(frozen=True, kw_only=True)
class Transfer:
    """Elements that one rank sends to another."""

    source: int
    destination: int
    elements: Interval


def traffic_of(plan: Iterable[Transfer], present: Sequence[Intervals], wanted: Sequence[Intervals]) -> Traffic:
    """That of a plan for a vector of float32, by what each rank has and should have."""
    lacking = [difference(ours, had) for ours, had in zip(wanted, present, strict=True)]
    return Traffic(
        moved_bytes=_ELEMENT_BYTES * sum(transfer.elements.num_elements for transfer in plan),
        least_bytes=_ELEMENT_BYTES * sum(each.num_elements for parts in lacking for each in parts),
    )


def missing(present: Sequence[Intervals], wanted: Sequence[Intervals]) -> Intervals:
    """What some rank wants and none has; both by rank."""
    return difference((part for each in wanted for part in each), (part for each in present for part in each))


def plan_transfers(present: Sequence[Intervals], wanted: Sequence[Intervals]) -> tuple[Transfer, ...]:
    """Send every rank what it wants and has not, each element once, from whoever has the least to send so far.

    Args:
        present: what each rank has.
        wanted: what each rank should have; nothing of it is ``missing``.
    """
    assert len(present) == len(wanted)
    had = [union(intervals) for intervals in present]
    num_sent = [0] * len(had)
    plan: list[Transfer] = []
    for destination, intervals in enumerate(wanted):
        for interval in difference(intervals, had[destination]):
            at = interval.first
            while at < interval.end:
                rest = Interval(at, interval.end)
                offers = [(source, part) for source, parts in enumerate(had) for part in parts if _has(part, at)]
                source, part = min(offers, key=lambda offer: (num_sent[offer[0]], offer[0]))
                elements = intersection(rest, part)
                plan.append(Transfer(source=source, destination=destination, elements=elements))
                num_sent[source] += elements.num_elements
                at = elements.end
    return tuple(plan)


def _has(interval: Interval, element: int) -> bool:
    return interval.first <= element < interval.end
