"""Which share of the slots' time was used for what. Pure functions of their slices."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rlserve.tracking.timeline.activity import Kind, Slices

WORK: Mapping[str, Kind] = {"train": "training", "rollout": "generating"}
"""What each role is for."""


@dataclass(frozen=True, kw_only=True)
class Usage:
    """Seconds of slots, all of them together."""

    by_owner: Mapping[str, Mapping[Kind, float]]
    """Of each owner, what its slots did."""

    def total_s(self, *kinds: Kind) -> float:
        """Spent on some kinds, by whomever; on all where none is named."""
        return sum(
            duration_s
            for spent in self.by_owner.values()
            for kind, duration_s in spent.items()
            if not kinds or kind in kinds
        )

    def of_role(self, role: str) -> float | None:
        """Share of the time that slots had the role in which they did its work: capacity is what the role had at each
        moment. None where it had none."""
        spent = self.by_owner.get(role, {})
        capacity_s = sum(spent.values())
        return spent.get(WORK[role], 0.0) / capacity_s if capacity_s > 0 else None

    @property
    def bubble(self) -> float | None:
        """Share of all slots' time in which they neither trained nor generated: they waited, synced, switched, started
        or were lost."""
        whole_s = self.total_s()
        return 1 - self.total_s(*WORK.values()) / whole_s if whole_s > 0 else None


def usage(slices: Slices, start_s: float, end_s: float) -> Usage:
    """Of the time from ``start_s`` to ``end_s``."""
    return usages(slices, (start_s, end_s))[0]


def usages(slices: Slices, edges_s: Sequence[float]) -> tuple[Usage, ...]:
    """Of each window between two neighbours of ``edges_s``, which ascend."""
    spent: list[dict[str, dict[Kind, float]]] = [{} for _ in edges_s[1:]]
    for piece in (piece for own in slices.values() for piece in own):
        first = max(bisect_right(edges_s, piece.start_s) - 1, 0)
        for window in range(first, len(spent)):
            start_s, end_s = max(piece.start_s, edges_s[window]), min(piece.end_s, edges_s[window + 1])
            if piece.end_s <= edges_s[window]:
                break
            if start_s < end_s:
                kinds = spent[window].setdefault(piece.owner, {})
                kinds[piece.kind] = kinds.get(piece.kind, 0.0) + end_s - start_s
    return tuple(Usage(by_owner=each) for each in spent)
