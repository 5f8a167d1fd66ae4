"""What the report shows, read from the files of a run. Everything after the reading is a pure function."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from rlserve.tracking import names
from rlserve.tracking.answers import Answer, read_answers, worst_and_best
from rlserve.tracking.explanation.verdict import verdict
from rlserve.tracking.hindsight.efficiency import Efficiency
from rlserve.tracking.hindsight.judgement import Judgement, judge
from rlserve.tracking.jsonl import Line, read_json_lines
from rlserve.tracking.paced import is_paced
from rlserve.tracking.report.series import Series, broken_at, merge_steps, series, step_marks
from rlserve.tracking.report.use_rows import use_headline, use_rows
from rlserve.tracking.run_folder import RunFolder
from rlserve.tracking.run_view import MoveView, move_views
from rlserve.tracking.summary import RunSummary, format_score, pacing_rows, read_summary, summary_rows
from rlserve.tracking.timeline.activity import Slices, activity
from rlserve.tracking.timeline.ownership import SlotTimeline, slot_timelines, work_start_s
from rlserve.tracking.timeline.usage import Usage, usage

MAX_NUM_STEP_MARKS = 14
_HELD_OUT_LOSS = "val/loss"
"""A run that learns from a data set has it before its first step."""
NUM_ANSWERS = 3
"""Of the worst, and again of the best, of the last step that has any."""


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
    """Everything in the picture. Times are in seconds since the start of the run, stops left out."""

    name: str
    headline: tuple[tuple[str, str], ...]
    """What, and how much: the summary in a few words; empty while the run goes on."""
    summary: tuple[tuple[str, str], ...]
    """The same in full."""
    notes: tuple[str, ...]
    """What the moves came to, and whether a paced run counts, in sentences."""
    is_paced: bool
    """Times are those of the accelerators that it models."""
    metrics: tuple[Line, ...]
    """One record a step."""
    queue: Series
    """By time."""
    queue_bounds: tuple[float, float] | None
    """Low and high threshold; None where the policy has none."""
    moves: tuple[Move, ...]
    slots: tuple[SlotTimeline, ...]
    failures: tuple[Failure, ...]
    answers: tuple[Answer, ...]
    """A few, the worst first."""
    slices: Slices
    """What every slot did."""
    usage: Usage
    """Of the time since work began."""
    gains: tuple[MoveView, ...]
    """Every series of moves with what it was to bring, and what it brought."""
    staleness: Mapping[int, int]
    """Prompt groups trained, by the steps that their oldest token was old."""
    efficiency: Efficiency | None
    start_s: float
    """When work began: what lies before is preparation and the start of the workers."""
    resumes_s: tuple[float, ...]
    """When the run went on after a stop."""
    end_s: float

    def by_step(self, name: str) -> Series:
        """A metric over training steps."""
        return series(self.metrics, "step", name)

    @property
    def generates(self) -> bool:
        """Whether the run has a rollout side; one that learns from a data set has none."""
        return not any(names.LOSS in record or _HELD_OUT_LOSS in record for record in self.metrics)

    @property
    def learning(self) -> tuple[str, str, Series]:
        """What shows whether the run learns, over training steps: title, what its curve is called, and the curve."""
        losses = self.by_step(names.LOSS)
        if losses.x:
            return "loss", "loss of a step", losses
        return "reward", "mean reward of a step", self.by_step(names.REWARD)

    def by_time(self, name: str) -> Series:
        """A metric over seconds, broken where the run was resumed."""
        return broken_at(series(self.metrics, names.TIME, name), self.resumes_s)

    @property
    def steps(self) -> Series:
        """x: seconds at which a step ended, y: its number."""
        return series([record for record in self.metrics if record["step"] > 0], names.TIME, "step")

    @property
    def step_marks(self) -> list[tuple[float, int]]:
        """Seconds and number of the steps that are marked on the time axis; their numbers have room beside each
        other."""
        return step_marks(self.steps, MAX_NUM_STEP_MARKS, (self.end_s - self.start_s) / MAX_NUM_STEP_MARKS / 2)


def read_report_data(folder: RunFolder) -> ReportData:
    """Read a run's folder.

    Raises:
        DataError: a line is damaged.
    """
    metrics = merge_steps(read_json_lines(folder.metrics_file))
    decisions = read_json_lines(folder.decisions_file)
    events = read_json_lines(folder.events_file)
    summary = read_summary(folder)
    config = folder.read_config()
    times_s = [record["time_s"] for record in (*decisions, *events)]
    times_s += [record[names.TIME] for record in metrics if record.get(names.TIME) is not None]
    end_s = max(times_s, default=0.0)
    slots = slot_timelines(events, end_s)
    start_s, slices = work_start_s(slots), activity(slots, events)
    used = usage(slices, start_s, end_s)
    judgement = judge(decisions=decisions, events=events, metrics=metrics, config=config)
    gains = tuple(move_views(judgement))
    resumes_s = tuple(event["time_s"] for event in events if event["event"] == "run" and event["resumed"])
    return ReportData(
        name=folder.name,
        headline=(*(headline(summary) if summary else ()), *use_headline(used)),
        summary=(*(summary_rows(summary) if summary else ()), *use_rows(used, gains, events)),
        notes=notes(summary, judgement),
        is_paced=is_paced(config),
        metrics=tuple(metrics),
        queue=broken_at(series(queue_lengths(decisions, metrics), "time_s", "queue_length"), resumes_s),
        queue_bounds=queue_bounds(config),
        moves=moves(decisions),
        slots=slots,
        failures=failures(events),
        answers=some_answers(read_answers(folder.answers_file)),
        slices=slices,
        usage=used,
        gains=gains,
        staleness=staleness(read_json_lines(folder.samples_file)),
        efficiency=judgement.efficiency,
        start_s=start_s,
        resumes_s=resumes_s,
        end_s=end_s,
    )


def notes(summary: RunSummary | None, judgement: Judgement) -> tuple[str, ...]:
    """What is to be said of a run besides its numbers."""
    pacing = [f"Paced run: {words}." for _, words in pacing_rows(summary)] if summary else []
    return (*pacing, *verdict(judgement))


def queue_lengths(decisions: Iterable[Line], metrics: Iterable[Line]) -> list[Line]:
    """The queue at every decision that was written, and after every step."""
    lengths: list[Line] = [
        {"time_s": record[names.TIME], "queue_length": record[names.QUEUE_LENGTH]}
        for record in metrics
        if record.get(names.TIME) is not None and record.get(names.QUEUE_LENGTH) is not None
    ]
    return sorted([*decisions, *lengths], key=lambda record: float(record["time_s"]))


def staleness(samples: Iterable[Line]) -> Mapping[int, int]:
    """Prompt groups by staleness, from 0 on without a gap."""
    counted = Counter(line["step"] - 1 - version for line in samples for version in line["oldest_versions"])
    return {steps: counted[steps] for steps in range(max(counted, default=-1) + 1)}


def moves(decisions: Iterable[Line]) -> tuple[Move, ...]:
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


def failures(events: Iterable[Line]) -> tuple[Failure, ...]:
    """The workers that were lost."""
    return tuple(
        Failure(time_s=event["time_s"], slot_id=event["slot_id"], reason=event["reason"])
        for event in events
        if event["event"] == "failure"
    )


def some_answers(answers: Iterable[Answer]) -> tuple[Answer, ...]:
    """The worst and the best answers of the last training step that has any."""
    trained = [answer for answer in answers if answer.kind == "training"]
    last = max((answer.step for answer in trained), default=0)
    return tuple(worst_and_best([answer for answer in trained if answer.step == last], NUM_ANSWERS))


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
    score = f"{format_score(before)} → {format_score(after)}" if before is not None and after is not None else "-"
    paced = summary.overrun_share is not None
    return (
        *(() if paced else (("held-out score", score),)),
        ("steps", str(summary.num_steps)),
        ("modelled time" if paced else "time", shown["time"].split(",")[0]),
        *(_of_generating(summary) if not summary.learns_from_data else ()),
        ("workers lost", str(summary.worker_failures)),
    )


def _of_generating(summary: RunSummary) -> tuple[tuple[str, str], ...]:
    return (
        ("slots moved", f"{summary.moves_to_rollout} to rollout, {summary.moves_to_train} to train"),
        ("tokens/s generated", f"{summary.rollout_tokens_per_s:,.0f}"),
    )


def labelled_scores(held_out: Series) -> tuple[str, ...]:
    """What stands at each held-out score: the number at the first and the last, nothing between."""
    ends = {0, len(held_out.y) - 1}
    return tuple(format_score(score) if index in ends else "" for index, score in enumerate(held_out.y))
