"""What each replica did, stretch by stretch, for the run's timeline.

::

    joins ├── 2 s ──┤── 2 s ──┤ … ├──── T/300 ────┤── as long as is left ──┤ leaves

A stretch grows with the time T that the run has been going, so that a long run has no more lines than one can read:
about a thousand a replica in an hour, two thousand in a day. It ends early where the whole run goes over to something
else, so that each stretch belongs to one stage.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from rlserve.controller.context import RunContext
from rlserve.controller.events import ReplicaHeard
from rlserve.tracking.events import ReplicaEvent, SlotEvent, StageEvent

MIN_STRETCH_S = 2.0
STRETCH_SHARE = 1 / 300
"""Of the time that the run has been going."""


@dataclass(frozen=True, kw_only=True)
class _Totals:
    """Of one replica since it began to serve."""

    since_s: float
    time_s: float
    busy_s: float = 0.0
    recompute_s: float = 0.0
    running_s: float = 0.0
    num_tokens: int = 0
    longest_gap_s: float = 0.0
    """Since it was told last."""


class ReplicaLog:
    """Hears what replicas tell, and records it."""

    def __init__(self, run: RunContext) -> None:
        self._run = run
        self._told: dict[str, _Totals] = {}
        self._heard: dict[str, _Totals] = {}
        run.events.subscribe(ReplicaHeard, self._note)
        run.events.subscribe(SlotEvent, self._note_owner)
        run.events.subscribe(StageEvent, self._note_stage)

    def _note(self, event: ReplicaHeard) -> None:
        now, stats = self._run.clock.now(), event.stats
        begun = self._told.get(event.slot_id)
        if begun is None or begun.since_s != event.since_s:
            self._told[event.slot_id] = _Totals(since_s=event.since_s, time_s=event.since_s)
        before = self._heard.get(event.slot_id)
        untold_s = 0.0 if before is None or before.since_s != event.since_s else before.longest_gap_s
        self._heard[event.slot_id] = _Totals(
            since_s=event.since_s,
            time_s=now,
            busy_s=stats.busy_s,
            recompute_s=stats.recompute_s,
            running_s=stats.running_s,
            num_tokens=event.num_generated_tokens,
            longest_gap_s=max(untold_s, stats.longest_gap_s),
        )
        if now - self._told[event.slot_id].time_s >= max(MIN_STRETCH_S, now * STRETCH_SHARE):
            self._tell(event.slot_id)

    def _note_owner(self, event: SlotEvent) -> None:
        """A replica that leaves has a last stretch; of one that is heard once more, what has come since."""
        if event.owner != "rollout" and event.slot_id in self._heard:
            self._tell(event.slot_id)

    def _note_stage(self, _: StageEvent) -> None:
        """What came before belongs to the stage before."""
        for slot_id in self._heard:
            self._tell(slot_id)

    def _tell(self, slot_id: str) -> None:
        before, now = self._told[slot_id], self._heard[slot_id]
        if now.time_s > before.time_s:
            self._told[slot_id] = now
            self._heard[slot_id] = replace(now, longest_gap_s=0.0)
            self._run.events.emit(
                ReplicaEvent(
                    time_s=now.time_s,
                    slot_id=slot_id,
                    begin_s=before.time_s,
                    busy_s=now.busy_s - before.busy_s,
                    recompute_s=now.recompute_s - before.recompute_s,
                    running_s=now.running_s - before.running_s,
                    num_tokens=now.num_tokens - before.num_tokens,
                    longest_gap_s=now.longest_gap_s,
                )
            )
