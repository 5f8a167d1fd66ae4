"""What the report shows, read from the files of a run. Everything after the reading is a pure function."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from rlserve.tracking import names
from rlserve.tracking.jsonl import read_json_lines
from rlserve.tracking.run_folder import RunFolder
from rlserve.tracking.summary import RunSummary, read_summary, summary_rows

Record = Mapping[str, Any]


@dataclass(frozen=True)
class Series:
    """Points of a curve; ``x`` is steps or seconds."""

    x: tuple[float, ...] = ()
    y: tuple[float, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A slot belonged to ``owner`` (train, rollout, moving, dead) from ``start_s`` to ``end_s``."""

    owner: str
    start_s: float
    end_s: float


@dataclass(frozen=True, kw_only=True)
class SlotRow:
    """The life of one slot."""

    slot_id: str
    slot_type: str
    intervals: tuple[Interval, ...]

    @property
    def label(self) -> str:
        """The slot with its type, which most slots are named after already."""
        return self.slot_id if self.slot_id.startswith(self.slot_type) else f"{self.slot_id} ({self.slot_type})"


@dataclass(frozen=True, kw_only=True)
class Move:
    """A decision to move a slot."""

    time_s: float
    action: str
    queue_length: float
    reason: str


@dataclass(frozen=True, kw_only=True)
class Failure:
    """A worker was lost."""

    time_s: float
    slot_id: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class ReportData:
    """Everything in the picture."""

    name: str
    headline: tuple[tuple[str, str], ...]
    """What, and how much: the summary in a few words; empty while the run goes on."""
    summary: tuple[tuple[str, str], ...]
    """The same in full."""
    reward: Series
    """By step, as the following three."""
    held_out: Series
    staleness: Series
    log_prob_difference: Series
    steps: Series
    """x: seconds at which a step ended, y: its number."""
    queue: Series
    """By seconds, as all that follows."""
    queue_bounds: tuple[float, float] | None
    """Low and high threshold; None where the policy has none."""
    moves: tuple[Move, ...]
    slots: tuple[SlotRow, ...]
    failures: tuple[Failure, ...]
    generated_tokens_per_s: Series
    trained_tokens_per_s: Series
    end_s: float


def read_report_data(folder: RunFolder) -> ReportData:
    """Read a run's folder.

    Raises:
        DataError: a line is damaged.
    """
    metrics = merge_steps(read_json_lines(folder.metrics_file))
    decisions = read_json_lines(folder.decisions_file)
    events = read_json_lines(folder.events_file)
    summary = read_summary(folder)
    config = yaml.safe_load(folder.config_file.read_text(encoding="utf-8")) if folder.config_file.exists() else {}
    times_s = [record["time_s"] for record in (*decisions, *events)]
    times_s += [record[names.TIME] for record in metrics if record.get(names.TIME) is not None]
    end_s = max(times_s, default=0.0)
    return ReportData(
        name=folder.name,
        headline=headline(summary) if summary else (),
        summary=tuple(summary_rows(summary)) if summary else (),
        reward=series(metrics, "step", names.REWARD),
        held_out=series(metrics, "step", names.HELD_OUT),
        staleness=series(metrics, "step", names.STALENESS_MAX),
        log_prob_difference=series(metrics, "step", names.LOG_PROB_DIFFERENCE),
        steps=series([record for record in metrics if record["step"] > 0], names.TIME, "step"),
        queue=series(decisions, "time_s", "queue_length"),
        queue_bounds=queue_bounds(config),
        moves=moves(decisions),
        slots=slot_rows(events, end_s),
        failures=failures(events),
        generated_tokens_per_s=series(metrics, names.TIME, names.ROLLOUT_TOKENS_PER_S),
        trained_tokens_per_s=series(metrics, names.TIME, names.TRAINED_TOKENS_PER_S),
        end_s=end_s,
    )


def merge_steps(records: Iterable[Record]) -> list[dict[str, Any]]:
    """One record a step, in order, where a step was logged in several."""
    merged: dict[int, dict[str, Any]] = {}
    for record in records:
        merged.setdefault(record["step"], {}).update(record)
    return [merged[step] for step in sorted(merged)]


def series(records: Iterable[Record], x: str, y: str) -> Series:
    """The points of all records that have both numbers, ordered by x."""
    points = [(record[x], record[y]) for record in records if record.get(x) is not None and record.get(y) is not None]
    points.sort(key=lambda point: point[0])
    return Series(tuple(point[0] for point in points), tuple(point[1] for point in points))


def moves(decisions: Iterable[Record]) -> tuple[Move, ...]:
    """The decisions that move a slot."""
    return tuple(
        Move(
            time_s=decision["time_s"],
            action=decision["action"],
            queue_length=decision["queue_length"] or 0,
            reason=decision["reason"],
        )
        for decision in decisions
        if decision["action"] != "hold"
    )


def failures(events: Iterable[Record]) -> tuple[Failure, ...]:
    """The workers that were lost."""
    return tuple(
        Failure(time_s=event["time_s"], slot_id=event["slot_id"], reason=event["reason"])
        for event in events
        if event["event"] == "failure"
    )


def slot_rows(events: Iterable[Record], end_s: float) -> tuple[SlotRow, ...]:
    """One row a slot, in the order in which they first appear; the last owner keeps the slot until ``end_s``."""
    changes: dict[str, list[Record]] = {}
    for event in events:
        if event["event"] == "slot":
            changes.setdefault(event["slot_id"], []).append(event)
    return tuple(
        SlotRow(slot_id=slot_id, slot_type=own[0]["slot_type"], intervals=_intervals(own, end_s))
        for slot_id, own in changes.items()
    )


def _intervals(changes: Sequence[Record], end_s: float) -> tuple[Interval, ...]:
    """Neighbours with the same owner become one; what takes no time is left out."""
    intervals: list[Interval] = []
    ends_s = [change["time_s"] for change in changes[1:]] + [end_s]
    for change, next_s in zip(changes, ends_s, strict=True):
        start_s = change["time_s"]
        if intervals and intervals[-1].owner == change["owner"] and intervals[-1].end_s == start_s:
            start_s = intervals.pop().start_s
        if next_s > start_s:
            intervals.append(Interval(owner=change["owner"], start_s=start_s, end_s=next_s))
    return tuple(intervals)


def queue_bounds(config: Mapping[str, Any]) -> tuple[float, float] | None:
    """The thresholds of the queue-length rule."""
    manager = config.get("manager", {})
    if manager.get("policy") != "queue_threshold":
        return None
    return manager["queue_low"], manager["queue_high"]


def headline(summary: RunSummary) -> tuple[tuple[str, str], ...]:
    """The few numbers that a reader wants first."""
    shown = dict(summary_rows(summary))
    before, after = summary.held_out_before, summary.held_out_after
    score = f"{before:.2f} → {after:.2f}" if before is not None and after is not None else "-"
    return (
        ("held-out score", score),
        ("steps", str(summary.num_steps)),
        ("time", shown["time"].split(",")[0]),
        ("slots moved", f"{summary.moves_to_rollout} to rollout, {summary.moves_to_train} to train"),
        ("tokens/s generated", f"{summary.rollout_tokens_per_s:,.0f}"),
        ("workers lost", str(summary.worker_failures)),
    )


def running_mean(values: Sequence[float]) -> list[float]:
    """Smoothed over a centred window of about a twentieth of the values, at least 5; as long as the input."""
    half = max(2, len(values) // 40)
    windows = [values[max(0, index - half) : index + half + 1] for index in range(len(values))]
    return [sum(window) / len(window) for window in windows]


def step_marks(steps: Series, max_num_marks: int) -> list[tuple[float, int]]:
    """Seconds and number of some round steps (every 1, 2, 5, 10 …) to be marked on a time axis."""
    if not steps.y:
        return []
    stride, factors = 1, [2, 2.5, 2]
    while len(steps.y) / stride > max_num_marks:
        stride = int(stride * factors[0])
        factors = factors[1:] + factors[:1]
    return [(time_s, int(step)) for time_s, step in zip(steps.x, steps.y, strict=True) if step % stride == 0]
