"""``trace.json``: a run's timeline for Perfetto (https://ui.perfetto.dev) or ``chrome://tracing``.

::

    process "slots"   a track a slot: whose it is, within it what it does, and within a change of role its parts
    process "run"     a track of training steps, each with its wait, its work and the copy of the weights;
                      a track of the manager's decisions; counters

Times are microseconds on the run's clock. The format: "Trace Event Format",
https://docs.google.com/document/d/1CvAClvFfyA5R-PhYUmn5OOQtYMH4h6I0nSsKchNAySU
"""

from __future__ import annotations

import json
from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlserve.tracking import names
from rlserve.tracking.jsonl import Line, read_json_lines
from rlserve.tracking.run_folder import RunFolder
from rlserve.tracking.timeline.activity import Slices, activity
from rlserve.tracking.timeline.ownership import Interval, SlotTimeline, slot_timelines

TraceEvent = Mapping[str, Any]
SLOTS, RUN = 1, 2
"""Processes."""
STEPS, DECISIONS = 1, 2
"""Threads of the second."""
_OWNER_NAMES = {"train": "trainer", "rollout": "replica", "moving": "on the way", "dead": "lost"}
_COUNTERS = {
    "queue, prompt groups": {"waiting": names.QUEUE_LENGTH},
    "buffer, prompt groups": {"buffered": "rollout/num_buffered"},
    "tokens per second": {"generated": names.ROLLOUT_TOKENS_PER_S, "trained": names.TRAINED_TOKENS_PER_S},
}


@dataclass(frozen=True, kw_only=True)
class RunLines:
    """What the trace is made of."""

    metrics: Sequence[Line]
    decisions: Sequence[Line]
    events: Sequence[Line]

    @property
    def end_s(self) -> float:
        """When something was written last."""
        return max((line["time_s"] for line in (*self.decisions, *self.events)), default=0.0)


def write_trace(folder: RunFolder, path: Path) -> int:
    """Write the trace of a run that has ended or goes on; returns how many events it has.

    Raises:
        DataError: a file of the run is damaged.
        OSError: ``path`` cannot be written.
    """
    lines = RunLines(
        metrics=read_json_lines(folder.metrics_file),
        decisions=read_json_lines(folder.decisions_file),
        events=read_json_lines(folder.events_file),
    )
    events = list(trace_events(lines, folder.name))
    content = {"traceEvents": events, "displayTimeUnit": "ms", "otherData": {"run": folder.name}}
    path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    return len(events)


def trace_events(lines: RunLines, run_name: str) -> Iterator[TraceEvent]:
    """All events of the trace."""
    rows = slot_timelines(lines.events, lines.end_s)
    yield from _names(rows, run_name)
    yield from _slot_slices(rows, activity(rows, lines.events))
    yield from _role_phase_slices(rows, lines.events)
    yield from _step_slices(lines.events)
    yield from _instants(lines)
    yield from _counters(lines)


def _names(rows: Sequence[SlotTimeline], run_name: str) -> Iterator[TraceEvent]:
    threads = {(SLOTS, index): row.label for index, row in enumerate(rows, start=1)}
    threads |= {(RUN, STEPS): "training steps", (RUN, DECISIONS): "decisions"}
    for process, name in ((SLOTS, f"slots of {run_name}"), (RUN, "run")):
        yield {"ph": "M", "name": "process_name", "pid": process, "args": {"name": name}}
        yield {"ph": "M", "name": "process_sort_index", "pid": process, "args": {"sort_index": process}}
    for (process, thread), name in threads.items():
        yield {"ph": "M", "name": "thread_name", "pid": process, "tid": thread, "args": {"name": name}}
        yield {"ph": "M", "name": "thread_sort_index", "pid": process, "tid": thread, "args": {"sort_index": thread}}


def _slot_slices(rows: Sequence[SlotTimeline], slices: Slices) -> Iterator[TraceEvent]:
    for thread, row in enumerate(rows, start=1):
        for interval in row.intervals:
            yield _slice(SLOTS, thread, _OWNER_NAMES[interval.owner], interval, {"slot": row.slot_id})
        for piece in slices[row.slot_id]:
            yield _slice(SLOTS, thread, piece.kind, piece, {})


def _role_phase_slices(rows: Sequence[SlotTimeline], events: Iterable[Line]) -> Iterator[TraceEvent]:
    """The parts of changes of role, by what ends each: they lie within the states of the gang on its way."""
    gang_of = {row.slot_id: row.gang_id for row in rows}
    ends: dict[str, list[tuple[float, str]]] = defaultdict(list)
    for event in events:
        if event["event"] == "phase" and event["slot_id"] in gang_of:
            ends[gang_of[event["slot_id"]]].append((event["time_s"], event["phase"].replace("_", " ")))
    for own in ends.values():
        own.sort()
    for thread, row in enumerate(rows, start=1):
        own = ends[row.gang_id]
        for state in (phase for phase in row.phases if phase.owner == "moving"):
            begin_s = state.start_s
            for end_s, name in own[bisect_left(own, (begin_s, "")) : bisect_right(own, (state.end_s, "~"))]:
                yield _slice(SLOTS, thread, name, _interval(begin_s, end_s), {})
                begin_s = end_s


def _step_slices(events: Iterable[Line]) -> Iterator[TraceEvent]:
    for event in events:
        if event["event"] == "step":
            begin_s, work_s, copy_s, end_s = (
                event[name] for name in ("begin_s", "work_begin_s", "work_end_s", "time_s")
            )
            numbers = {name: event[name] for name in ("num_groups", "num_tokens", "slot_ids")}
            yield _slice(RUN, STEPS, f"step {event['step']}", _interval(begin_s, end_s), numbers)
            for name, first_s, last_s in (
                ("waiting for the batch", begin_s, work_s),
                ("training", work_s, copy_s),
                ("copying the weights", copy_s, end_s),
            ):
                yield _slice(RUN, STEPS, name, _interval(first_s, last_s), {})


def _instants(lines: RunLines) -> Iterator[TraceEvent]:
    """Decisions on their track, over all tracks where a slot moves; losses and published weights."""
    for decision in lines.decisions:
        is_move = decision["action"] != "hold"
        name = f"{decision['slot_id']} {decision['action'].replace('_', ' ')}" if is_move else "hold"
        yield _instant(name, decision["time_s"], "g" if is_move else "t", dict(decision))
    for event in lines.events:
        if event["event"] == "failure":
            yield _instant(f"{event['slot_id']} lost", event["time_s"], "g", {"reason": event["reason"]})
        elif event["event"] == "weights" and event["slot_id"] is None:
            yield _instant(f"weights {event['version']}", event["time_s"], "t", {"publish_s": event["duration_s"]})


def _counters(lines: RunLines) -> Iterator[TraceEvent]:
    """Of metrics as of the end of each step; of the queue also as of each decision."""
    for record in lines.metrics:
        if record.get(names.TIME) is None:
            continue
        for name, parts in _COUNTERS.items():
            values = {part: record[metric] for part, metric in parts.items() if record.get(metric) is not None}
            if values:
                yield _counter(name, record[names.TIME], values)
    for decision in lines.decisions:
        if decision["queue_length"] is not None:
            yield _counter("queue, prompt groups", decision["time_s"], {"waiting": decision["queue_length"]})
    for event in lines.events:
        if event["event"] == "replica" and event["time_s"] > event["begin_s"]:
            rate = event["num_tokens"] / (event["time_s"] - event["begin_s"])
            yield _counter(f"tokens per second, {event['slot_id']}", event["begin_s"], {"generated": rate})


def _interval(start_s: float, end_s: float) -> Interval:
    return Interval(owner="", start_s=start_s, end_s=end_s)


def _slice(process: int, thread: int, name: str, when: Interval, numbers: Mapping[str, Any]) -> TraceEvent:
    """Whole microseconds of both ends, so that what follows on something begins where it ends."""
    start_us, end_us = _us(when.start_s), _us(when.end_s)
    return {
        "ph": "X",
        "name": name,
        "cat": "slot" if process == SLOTS else "run",
        "pid": process,
        "tid": thread,
        "ts": start_us,
        "dur": end_us - start_us,
        "args": numbers,
    }


def _instant(name: str, time_s: float, scope: str, numbers: Mapping[str, Any]) -> TraceEvent:
    return {
        "ph": "i",
        "name": name,
        "cat": "manager",
        "pid": RUN,
        "tid": DECISIONS,
        "ts": _us(time_s),
        "s": scope,
        "args": numbers,
    }


def _counter(name: str, time_s: float, values: Mapping[str, float]) -> TraceEvent:
    return {"ph": "C", "name": name, "pid": RUN, "ts": _us(time_s), "args": values}


def _us(seconds: float) -> int:
    return round(seconds * 1e6)
