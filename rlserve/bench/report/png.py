"""The picture of a benchmark: of one run, how latencies are distributed and what happened over time; of a sweep,
latencies and rates by load.

::

    one run                                     sweep
    TTFT, latency: share of requests | TPOT, ITL    TTFT by load | TPOT by load
    output tokens/s and requests in flight, by time latency by load | output tokens/s, goodput by load
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from rlserve.bench.results.over_time import over_time
from rlserve.bench.results.statistics import Distribution
from rlserve.bench.results.summary import Measurement, Summary
from rlserve.errors import UserError
from rlserve.tracking import colours
from rlserve.tracking.report.png import DOTS_PER_INCH, PAGE_WIDTH, STYLE

_HEIGHT = 7.6
_MAX_NUM_BINS = 120
_MAX_LINEAR_RANGE = 12
_MAX_LABELLED_RANGE = 300
"""Of a logarithmic axis that has room for 1, 2 and 5."""
_LEFT_OUT_PERCENT = 2
"""Of gaps, at the low end: pieces that happened to come together would take half the axis."""
_SHORTEST_MS = 1e-3
"""Pieces that came together have no gap, which a logarithmic axis has no place for."""
_FIRST, _SECOND = colours.KL, colours.OWNER_COLOURS["rollout"]
_DEADLINE = colours.CUT

Runs = Sequence[tuple[Measurement, Summary]]


def write_png(path: Path, title: str, runs: Runs) -> None:
    """Draw one run, or a sweep of several.

    Raises:
        UserError: the file cannot be written, or is of no kind that can be drawn.
    """
    with rc_context(STYLE):
        figure = Figure(figsize=(PAGE_WIDTH, _HEIGHT), layout="constrained")
        FigureCanvasAgg(figure)
        figure.suptitle(title, x=0.01, ha="left", fontsize=12, fontweight="bold", parse_math=False)
        if len(runs) == 1:
            _draw_run(figure, *runs[0])
        else:
            _draw_sweep(figure, [summary for _, summary in runs], [run.level for run, _ in runs])
        try:
            figure.savefig(path, dpi=DOTS_PER_INCH, facecolor="white")
        except (OSError, ValueError) as error:
            raise UserError(f"the picture cannot be written to {path}: {error}") from error


def _draw_run(figure: Figure, run: Measurement, summary: Summary) -> None:
    grid = figure.add_gridspec(2, 3, height_ratios=(1.15, 1))
    first, between, whole = (figure.add_subplot(grid[0, column]) for column in range(3))
    answered = [record for record in run.records if record.failure is None]
    deadlines = summary.goodput.deadlines_ms if summary.goodput else {}
    _draw_shares(first, {"TTFT": [record.ttft_s for record in answered]}, deadlines.get("ttft"))
    first.set_title("time to first token")
    first.set_ylabel("share that took at most this")
    gaps_s: dict[str, Sequence[float | None]] = {
        "TPOT, by request": [record.tpot_s for record in answered],
        "ITL, by gap": [gap_s for record in answered for gap_s in record.itl_s],
    }
    _draw_shares(between, gaps_s, deadlines.get("tpot"))
    between.set_title("time per output token, gaps between pieces")
    _draw_shares(whole, {"latency": [record.latency_s for record in answered]}, deadlines.get("e2el"))
    whole.set_title("end-to-end latency")
    _draw_over_time(figure.add_subplot(grid[1, :]), run)


def _draw_shares(axes: Axes, times_s: Mapping[str, Sequence[float | None]], deadline_ms: float | None) -> None:
    """Cumulative distributions on a logarithmic axis, with median and p99 marked and written down."""
    everything = [] if deadline_ms is None else [deadline_ms]
    for colour, (label, values) in zip((_FIRST, _SECOND), times_s.items(), strict=False):
        known = np.sort([max(1000 * value, _SHORTEST_MS) for value in values if value is not None])
        if not known.size:
            continue
        everything += [float(np.percentile(known, _LEFT_OUT_PERCENT)), float(known[-1])]
        axes.step(known, np.arange(1, known.size + 1) / known.size, where="post", color=colour, linewidth=1.6)
        median, p99 = np.percentile(known, (50, 99))
        axes.plot([median, p99], [0.5, 0.99], "o", color=colour, markersize=5, clip_on=False)
        axes.plot([], [], color=colour, label=f"{label}: median {median:,.4g}, p99 {p99:,.4g} ms")
    if deadline_ms is not None:
        axes.axvline(deadline_ms, color=_DEADLINE, linestyle="--", linewidth=1.2, label=f"deadline {deadline_ms:g} ms")
    axes.set_ylim(0, 1.02)
    axes.set_xlabel("milliseconds")
    _scale(axes.xaxis, axes.set_xscale, axes.set_xlim, everything)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.14))


def _scale(
    axis: Axis,
    set_scale: Callable[[str], object],
    set_limits: Callable[[float, float], object],
    values: Sequence[float],
) -> None:
    """From 0, or logarithmic where values are of several orders."""
    if values and (spread := max(values) / min(values)) > _MAX_LINEAR_RANGE:
        set_scale("log")
        set_limits(0.8 * min(values), 1.25 * max(values))
        axis.set_major_locator(LogLocator(subs=(1, 2, 5) if spread < _MAX_LABELLED_RANGE else (1,)))
        axis.set_minor_locator(NullLocator())
    elif values:
        set_limits(0, 1.06 * max(values))
    axis.set_major_formatter(lambda value, _: f"{value:,.4g}")


def _draw_over_time(axes: Axes, run: Measurement) -> None:
    num_bins = min(max(int(run.duration_s), 20), _MAX_NUM_BINS)
    course = over_time(run.records, max(run.duration_s, 1e-6), num_bins=num_bins)
    axes.plot(course.times_s, course.output_tokens_per_s, color=_FIRST, linewidth=1.6)
    axes.set_ylabel("output tokens/s", color=_FIRST)
    axes.set_ylim(bottom=0)
    axes.set_xlim(0, max(run.duration_s, 1e-6))
    axes.set_xlabel("seconds")
    axes.set_title(f"throughput and requests in flight, each over {run.duration_s / num_bins:.3g} s")
    other = axes.twinx()
    other.plot(course.times_s, course.requests_in_flight, color=_SECOND, linewidth=1.6)
    other.set_ylabel("requests in flight", color=_SECOND)
    other.set_ylim(bottom=0)
    other.grid(visible=False)
    failed_s = [record.ended_s for record in run.records if record.failure is not None]
    if failed_s:
        axes.plot(failed_s, [0] * len(failed_s), "x", color=_DEADLINE, clip_on=False, label=f"{len(failed_s)} failed")
        axes.legend(loc="upper right")


def _draw_sweep(figure: Figure, summaries: Sequence[Summary], levels: Sequence[float]) -> None:
    (ttft, tpot), (whole, rates) = figure.subplots(2, 2, sharex=True)
    deadlines = next((summary.goodput.deadlines_ms for summary in summaries if summary.goodput), {})
    _draw_by_load(ttft, levels, [summary.ttft_s for summary in summaries], deadlines.get("ttft"))
    ttft.set_title("time to first token, ms")
    _draw_by_load(tpot, levels, [summary.tpot_s for summary in summaries], deadlines.get("tpot"))
    tpot.set_title("time per output token, ms")
    _draw_by_load(whole, levels, [summary.latency_s for summary in summaries], deadlines.get("e2el"))
    whole.set_title("end-to-end latency, ms")
    rates.plot(levels, [s.output_tokens_per_s for s in summaries], "o-", color=_FIRST, label="output tokens/s")
    rates.set_ylabel("output tokens/s", color=_FIRST)
    rates.set_ylim(bottom=0)
    other = rates.twinx()
    other.plot(levels, [s.requests_per_s for s in summaries], "s-", color=_SECOND, label="answered requests/s")
    if deadlines:
        good = [s.goodput.requests_per_s if s.goodput else 0.0 for s in summaries]
        other.plot(levels, good, "D--", color=colours.REWARD, label="goodput, requests/s")
    other.set_ylabel("requests/s", color=_SECOND)
    # Higher than the other axis goes, or with answers of one length the two curves would lie on each other.
    other.set_ylim(0, 1.3 * max(summary.requests_per_s for summary in summaries) or 1.0)
    other.grid(visible=False)
    other.legend(loc="best")
    rates.set_title("throughput")
    if max(levels) > _MAX_LINEAR_RANGE * min(levels) and np.isfinite(levels).all():
        rates.set_xscale("log")
        rates.set_xticks(levels, [f"{level:g}" for level in levels])
        rates.xaxis.set_minor_locator(NullLocator())
    for axes in (whole, rates):
        axes.set_xlabel(summaries[0].load.split()[0] + (" (requests/s)" if "/s" in summaries[0].load else ""))


def _draw_by_load(
    axes: Axes, levels: Sequence[float], found: Sequence[Distribution | None], deadline_ms: float | None
) -> None:
    everything = [] if deadline_ms is None else [deadline_ms]
    for colour, name in ((_FIRST, "median"), (_SECOND, "p99")):
        points = [
            (level, max(1000 * getattr(d, name), _SHORTEST_MS))
            for level, d in zip(levels, found, strict=True)
            if d is not None
        ]
        everything += [value for _, value in points]
        if points:
            axes.plot(*zip(*points, strict=True), "o-", color=colour, label=name)
    if deadline_ms is not None:
        axes.axhline(deadline_ms, color=_DEADLINE, linestyle="--", linewidth=1.2, label=f"deadline {deadline_ms:g}")
    _scale(axes.yaxis, axes.set_yscale, axes.set_ylim, everything)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="best")
