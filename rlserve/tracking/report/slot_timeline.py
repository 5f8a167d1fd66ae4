"""Who had which slot when. Pure functions of the events of a run."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rlserve.tracking.report.series import Record

WORKING = ("train", "rollout")


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A slot belonged to ``owner`` (train, rollout, moving, dead) from ``start_s`` to ``end_s``."""

    owner: str
    start_s: float
    end_s: float


@dataclass(frozen=True, kw_only=True)
class SlotTimeline:
    """The life of one slot; between a stop and the workers' next start it belongs to nobody."""

    slot_id: str
    slot_type: str
    intervals: tuple[Interval, ...]

    @property
    def label(self) -> str:
        """The slot with its type, which most slots are named after already."""
        return self.slot_id if self.slot_id.startswith(self.slot_type) else f"{self.slot_id} ({self.slot_type})"


def slot_timelines(events: Iterable[Record], end_s: float) -> tuple[SlotTimeline, ...]:
    """One row a slot, in the order in which they first appear.

    The last owner keeps the slot until ``end_s``, or until the run was stopped.
    """
    types: dict[str, str] = {}
    stays: dict[str, list[list[Record]]] = {}
    ends_s: dict[str, list[float]] = {}
    for event in events:
        if event["event"] == "run":
            for slot_id, own in stays.items():
                if len(ends_s.setdefault(slot_id, [])) < len(own):
                    ends_s[slot_id].append(event["time_s"])
        elif event["event"] == "slot":
            slot_id = event["slot_id"]
            types.setdefault(slot_id, event["slot_type"])
            own = stays.setdefault(slot_id, [])
            if len(own) == len(ends_s.setdefault(slot_id, [])):
                own.append([])
            own[-1].append(event)
    return tuple(
        SlotTimeline(
            slot_id=slot_id,
            slot_type=types[slot_id],
            intervals=tuple(
                interval
                for changes, stay_end_s in zip(own, [*ends_s[slot_id], end_s], strict=False)
                for interval in _intervals(changes, stay_end_s)
            ),
        )
        for slot_id, own in stays.items()
    )


def work_start_s(rows: Iterable[SlotTimeline]) -> float:
    """When the first slot was given its work; 0 while none was."""
    starts_s = [part.start_s for row in rows for part in row.intervals if part.owner in WORKING]
    return min(starts_s, default=0.0)


def _intervals(changes: Sequence[Record], end_s: float) -> list[Interval]:
    """Neighbours with the same owner become one; what takes no time, or comes when the slot is gone, is left out."""
    intervals: list[Interval] = []
    ends_s = [change["time_s"] for change in changes[1:]] + [end_s]
    for change, next_s in zip(changes, ends_s, strict=True):
        start_s = change["time_s"]
        if intervals and intervals[-1].owner == change["owner"] and intervals[-1].end_s == start_s:
            start_s = intervals.pop().start_s
        if next_s > start_s and change["owner"] != "gone":
            intervals.append(Interval(owner=change["owner"], start_s=start_s, end_s=next_s))
    return intervals
