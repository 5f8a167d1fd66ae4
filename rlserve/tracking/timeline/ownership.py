"""Who had which slot when. Pure functions of the events of a run."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from rlserve.tracking.jsonl import Line

WORKING = ("train", "rollout")


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A slot belonged to ``owner`` (train, rollout, moving, dead) from ``start_s`` to ``end_s``."""

    owner: str
    start_s: float
    end_s: float


@dataclass(frozen=True, kw_only=True)
class Phase(Interval):
    """The same in detail."""

    state: str
    """Of its gang: ``leaving_train``, ``idle``, ``joining_rollout`` …"""


@dataclass(frozen=True, kw_only=True)
class SlotTimeline:
    """The life of one slot; between a stop and the workers' next start it belongs to nobody."""

    slot_id: str
    slot_type: str
    gang_id: str
    phases: tuple[Phase, ...]

    @property
    def label(self) -> str:
        """The slot with its type, which most slots are named after already."""
        return self.slot_id if self.slot_id.startswith(self.slot_type) else f"{self.slot_id} ({self.slot_type})"

    @property
    def intervals(self) -> tuple[Interval, ...]:
        """Phases of one owner that follow on each other are one."""
        merged: list[Interval] = []
        for phase in self.phases:
            if merged and (merged[-1].owner, merged[-1].end_s) == (phase.owner, phase.start_s):
                merged[-1] = replace(merged[-1], end_s=phase.end_s)
            else:
                merged.append(Interval(owner=phase.owner, start_s=phase.start_s, end_s=phase.end_s))
        return tuple(merged)


def slot_timelines(events: Iterable[Line], end_s: float) -> tuple[SlotTimeline, ...]:
    """One row a slot, in the order in which they first appear.

    The last owner keeps the slot until ``end_s``, or until the run was stopped.
    """
    first: dict[str, Line] = {}
    stays: dict[str, list[list[Line]]] = {}
    ends_s: dict[str, list[float]] = {}
    for event in events:
        if event["event"] == "run":
            for slot_id, own in stays.items():
                if len(ends_s.setdefault(slot_id, [])) < len(own):
                    ends_s[slot_id].append(event["time_s"])
        elif event["event"] == "slot":
            slot_id = event["slot_id"]
            first.setdefault(slot_id, event)
            own = stays.setdefault(slot_id, [])
            if len(own) == len(ends_s.setdefault(slot_id, [])):
                own.append([])
            own[-1].append(event)
    return tuple(
        SlotTimeline(
            slot_id=slot_id,
            slot_type=first[slot_id]["slot_type"],
            gang_id=first[slot_id]["gang_id"],
            phases=tuple(
                phase
                for changes, stay_end_s in zip(own, [*ends_s[slot_id], end_s], strict=False)
                for phase in _phases(changes, stay_end_s)
            ),
        )
        for slot_id, own in stays.items()
    )


def work_start_s(rows: Iterable[SlotTimeline]) -> float:
    """When the first slot was given its work; 0 while none was."""
    starts_s = [part.start_s for row in rows for part in row.phases if part.owner in WORKING]
    return min(starts_s, default=0.0)


def _phases(changes: Sequence[Line], end_s: float) -> list[Phase]:
    """What takes no time, or comes when the slot is gone, is left out."""
    ends_s = [change["time_s"] for change in changes[1:]] + [end_s]
    return [
        Phase(owner=change["owner"], state=change["state"], start_s=change["time_s"], end_s=next_s)
        for change, next_s in zip(changes, ends_s, strict=True)
        if next_s > change["time_s"] and change["owner"] != "gone"
    ]
