"""What every slot did, moment by moment. Pure functions of the events of a run.

::

    state of its gang         starting ─► starting     joining_*, leaving_* ─► switching     idle     dead ─► lost
    train    (step events)    training, syncing (its weights are copied); the rest is idle: it waits for a batch
    rollout  (replica events) generating, syncing (it takes weights); the rest is idle: it waits for prompts

A replica tells every few seconds how long it has computed since it told last; within such a stretch, computing is put
first and waiting after it.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from rlserve.tracking.jsonl import Line
from rlserve.tracking.timeline.ownership import Interval, Phase, SlotTimeline

Kind = Literal["lost", "starting", "switching", "syncing", "training", "generating", "idle"]
KINDS: tuple[Kind, ...] = get_args(Kind)
"""Where two overlap, the one that comes first here counts."""
_OF_STATE: Mapping[str, Kind] = {
    "dead": "lost",
    "starting": "starting",
    "joining_train": "switching",
    "leaving_train": "switching",
    "joining_rollout": "switching",
    "leaving_rollout": "switching",
}
"""Of a gang; in the others it is idle where it does nothing."""


@dataclass(frozen=True, kw_only=True)
class Slice(Interval):
    """A slot did one thing from ``start_s`` to ``end_s``."""

    kind: Kind

    @property
    def duration_s(self) -> float:
        """How long."""
        return self.end_s - self.start_s


@dataclass(frozen=True, kw_only=True)
class _Mark:
    kind: Kind
    start_s: float
    end_s: float


Slices = Mapping[str, tuple[Slice, ...]]
"""Of each slot, in order; together they cover its phases exactly."""


def activity(rows: Iterable[SlotTimeline], events: Iterable[Line]) -> Slices:
    """What every slot did, by its id."""
    rows = list(rows)
    marks = _marks(rows, events)
    return {
        row.slot_id: tuple(piece for phase in row.phases for piece in _cut(phase, marks[row.slot_id])) for row in rows
    }


def _marks(rows: Sequence[SlotTimeline], events: Iterable[Line]) -> Mapping[str, list[_Mark]]:
    """What is known of the work of each slot, in order of its beginning."""
    gang_of = {row.slot_id: row.gang_id for row in rows}
    slots_of: dict[str, list[str]] = defaultdict(list)
    for row in rows:
        slots_of[row.gang_id].append(row.slot_id)
    marks: dict[str, list[_Mark]] = defaultdict(list)
    for event in events:
        match event["event"]:
            case "step":
                for slot_id in event["slot_ids"]:
                    marks[slot_id] += [
                        _Mark(kind="training", start_s=event["work_begin_s"], end_s=event["work_end_s"]),
                        _Mark(kind="syncing", start_s=event["work_end_s"], end_s=event["time_s"]),
                    ]
            case "replica" | "weights" if event["slot_id"] in gang_of:
                for slot_id in slots_of[gang_of[event["slot_id"]]]:
                    marks[slot_id].append(_of_replica(event))
    for own in marks.values():
        own.sort(key=lambda mark: mark.start_s)
    return marks


def _of_replica(event: Line) -> _Mark:
    if event["event"] == "weights":
        return _Mark(kind="syncing", start_s=event["time_s"] - event["pause_s"], end_s=event["time_s"])
    end_s = min(event["begin_s"] + event["busy_s"], event["time_s"])
    return _Mark(kind="generating", start_s=event["begin_s"], end_s=end_s)


def _cut(phase: Phase, marks: Sequence[_Mark]) -> list[Slice]:
    """A phase in its slices; ``marks`` in order."""
    whole = _OF_STATE.get(phase.state)
    if whole is not None:
        return [Slice(kind=whole, owner=phase.owner, start_s=phase.start_s, end_s=phase.end_s)]
    changes: list[tuple[float, int, Kind]] = []
    for mark in marks:
        start_s, end_s = max(mark.start_s, phase.start_s), min(mark.end_s, phase.end_s)
        if start_s < end_s:
            changes += [(start_s, 1, mark.kind), (end_s, -1, mark.kind)]
    pieces: list[Slice] = []
    active: Counter[Kind] = Counter()
    start_s = phase.start_s
    for time_s, change, kind in sorted([*changes, (phase.end_s, 0, "idle")]):
        if time_s > start_s:
            now: Kind = next((each for each in KINDS if active[each] > 0), "idle")
            if pieces and pieces[-1].kind == now:
                start_s = pieces.pop().start_s
            pieces.append(Slice(kind=now, owner=phase.owner, start_s=start_s, end_s=time_s))
            start_s = time_s
        active[kind] += change
    return pieces
