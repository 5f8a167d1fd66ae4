"""The numbers that a run comes down to: ``summary.json`` and the closing table."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from rlserve.tracking.progress import format_duration
from rlserve.tracking.run_folder import RunFolder, write_atomically


@dataclass(frozen=True, kw_only=True)
class RunSummary:
    """What a run achieved and what it took. Counts and times span all resumes; None is what was not measured."""

    held_out_before: float | None
    """Share of held-out prompts answered right before the first step."""
    held_out_after: float | None
    num_steps: int
    groups_admitted: int
    """Prompt groups: admitted = trained + dropped once the run has ended."""
    groups_trained: int
    groups_dropped: Mapping[str, int]
    """By reason."""
    moves_to_rollout: int
    moves_to_train: int
    engine_restarts: int
    worker_failures: int
    final_weight_version: int
    seconds_to_first_step: float | None
    """From the start of the command to the end of the first training step."""
    seconds_total: float
    rollout_tokens_per_s: float
    """Tokens generated over the time from the first prompt to the last step."""
    trained_tokens_per_s: float
    max_staleness: int
    """Most steps that a trained token was older than the policy it trained."""
    mean_abs_log_prob_difference: float | None
    """Between engine and trainer, over all trained tokens."""
    loop_s: float = 0.0
    """From the first prompt to the last step; of a paced run in modelled seconds."""
    overrun_share: float | None = None
    """Of a paced run: how much later than modelled things ended, as a share of the modelled time, in the role where it
    is more."""
    host_was_bottleneck: bool | None = None
    """Of a paced run: whether that is too much for its times to count."""
    paced_activities: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """Of a paced run: by activity the number, and the modelled, computed and late seconds of all workers."""
    cost: Mapping[str, Any] = field(default_factory=dict)
    """What its slots were used for: as ``rlserve cost --json``."""
    learns_from_data: bool = False
    """Whether the run learned from a data set and generated nothing. Held-out scores are then what
    ``val-core/held_out/mean@1`` is (docs/jobs.md)."""


def write_summary(folder: RunFolder, summary: RunSummary) -> None:
    """Write ``summary.json``."""
    write_atomically(folder.summary_file, json.dumps(asdict(summary), indent=2) + "\n")


def read_summary(folder: RunFolder) -> RunSummary | None:
    """What :func:`write_summary` wrote; None while the run has not ended."""
    if not folder.summary_file.exists():
        return None
    return RunSummary(**json.loads(folder.summary_file.read_text(encoding="utf-8")))


def summary_rows(summary: RunSummary) -> list[tuple[str, str]]:
    """The summary as a person reads it: what, and how much."""
    if summary.learns_from_data:
        return _rows_of_data_run(summary)
    dropped = ", ".join(f"{number} {reason}" for reason, number in summary.groups_dropped.items())
    return [
        ("held-out score", _scores(summary)),
        ("training steps", f"{summary.num_steps}"),
        (
            "prompt groups",
            f"{summary.groups_admitted:,} admitted, {summary.groups_trained:,} trained, dropped: {dropped or 'none'}",
        ),
        ("slots moved", f"{summary.moves_to_rollout} to rollout, {summary.moves_to_train} to train"),
        ("workers lost", f"{summary.worker_failures}"),
        ("engine restarts", f"{summary.engine_restarts}"),
        ("weights", f"version {summary.final_weight_version}" if summary.final_weight_version >= 0 else "none yet"),
        ("time", _time(summary)),
        (
            "throughput",
            f"{summary.rollout_tokens_per_s:,.0f} tokens/s generated, {summary.trained_tokens_per_s:,.0f} trained",
        ),
        *cost_rows(summary),
        ("largest staleness", f"{summary.max_staleness} (steps)"),
        ("engine against trainer", f"{_difference(summary)} mean absolute log-probability difference"),
        *pacing_rows(summary),
    ]


def _rows_of_data_run(summary: RunSummary) -> list[tuple[str, str]]:
    return [
        ("held-out score", _scores(summary)),
        ("training steps", f"{summary.num_steps}"),
        ("workers lost", f"{summary.worker_failures}"),
        ("time", _time(summary)),
        ("throughput", f"{summary.trained_tokens_per_s:,.0f} tokens/s trained"),
        *cost_rows(summary),
    ]


def cost_rows(summary: RunSummary) -> list[tuple[str, str]]:
    """What the run's slots cost, and how much of that was useful; nothing where that was not counted."""
    cost = summary.cost
    if not cost or cost["useful_share"] is None:
        return []
    total, per_million = cost["total"], cost["per"]["1m_trained_tokens"]
    money = "" if total["money"] is None else f", {total['money']:.4g} {cost['prices']['currency']}"
    unit = "" if per_million is None else f"; {per_million['gpu_hours']:.4g} GPU-hours for 1M tokens trained"
    return [("cost", f"{total['gpu_hours']:.4g} GPU-hours{money}, {cost['useful_share']:.0%} of it useful{unit}")]


def print_summary(console: Console, summary: RunSummary, folder: RunFolder) -> None:
    """Close the run on the console: the numbers, where the report lies, how to upload an offline wandb run."""
    table = Table(title=folder.name, title_style="bold", title_justify="left", show_header=False, box=None)
    table.add_column(style="dim")
    table.add_column()
    for row in summary_rows(summary):
        table.add_row(*map(Text, row))
    console.print(table)
    places = {"run folder": str(folder.path)}
    if folder.report_html.exists():
        places["report"] = str(folder.report_html)
    command = folder.wandb_sync_command()
    if command is not None:
        places["upload to wandb"] = command
    for label, place in places.items():  # never wrapped, so that they can be copied
        console.print(Text.assemble((f" {label}: ", "dim"), place), soft_wrap=True)


def format_score(value: float, num_digits: int = 2) -> str:
    """A share with so many digits after the point, or more: what is not 0 or 1 never looks as if it were."""
    text = f"{value:.{num_digits}f}"
    while value not in (0, 1) and float(text) in (0, 1):
        num_digits += 1
        text = f"{value:.{num_digits}f}"
    return text


def pacing_rows(summary: RunSummary) -> list[tuple[str, str]]:
    """Of a paced run, whether it counts."""
    if summary.overrun_share is None:
        return []
    late = f"{summary.overrun_share:.1%} of the modelled time late"
    if summary.host_was_bottleneck:
        return [("paced", f"{late}: the host was the bottleneck; not counted (raise pool.pacing.dilation)")]
    return [("paced", f"{late}: the host kept up; times are modelled seconds")]


def _scores(summary: RunSummary) -> str:
    return f"{_score(summary.held_out_before)} before, {_score(summary.held_out_after)} after"


def _time(summary: RunSummary) -> str:
    return f"{format_duration(summary.seconds_total)}, first step after {_first_step(summary)}"


def _score(value: float | None) -> str:
    return "-" if value is None else format_score(value, num_digits=3)


def _first_step(summary: RunSummary) -> str:
    return "-" if summary.seconds_to_first_step is None else format_duration(summary.seconds_to_first_step)


def _difference(summary: RunSummary) -> str:
    value = summary.mean_abs_log_prob_difference
    return "-" if value is None else f"{value:.2g}"
