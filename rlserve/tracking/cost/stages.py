"""What the whole run is about, moment by moment, and what slots wait for meanwhile."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import pairwise

from rlserve.tracking.cost.uses import Use
from rlserve.tracking.events import Stage

WAITING: Mapping[Stage, Use] = {
    "starting": Use.STARTUP,
    "evaluating": Use.EVALUATION,
    "training": Use.BUBBLE,
    "saving": Use.CHECKPOINT,
    "ending": Use.STARTUP,
}
"""What a slot waits for that has a role, and nothing to do."""


class Stages:
    """The stages so far; the last one goes on."""

    def __init__(self, begin_ns: int) -> None:
        self._begins: list[tuple[int, Stage]] = [(begin_ns, "starting")]

    def enter(self, stage: Stage, time_ns: int) -> None:
        """Another stage begins."""
        self._begins.append((max(time_ns, self._begins[-1][0]), stage))

    def within(self, begin_ns: int, end_ns: int) -> Iterator[tuple[Stage, int]]:
        """The stages of some time, with how much of it is theirs; what was before the first is its, too."""
        if end_ns <= begin_ns:
            return
        first = len(self._begins) - 1
        while first > 0 and self._begins[first][0] > begin_ns:
            first -= 1
        edges = [begin_ns, *(min(max(edge, begin_ns), end_ns) for edge, _ in self._begins[first + 1 :]), end_ns]
        for (_, stage), (start_ns, stop_ns) in zip(self._begins[first:], pairwise(edges), strict=True):
            if stop_ns > start_ns:
                yield stage, stop_ns - start_ns
