"""``report.png``: the picture of a run on one page, by matplotlib without a display.

::

    headline
    reward by step (wide)            | engine against trainer by step
                                     | staleness by step
    queue length by time, thresholds, moves, steps
    who has which slot, by time
    tokens per second, by time
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from rlserve.tracking import colours
from rlserve.tracking.report.data import ReportData, Series, running_mean, step_marks

DOTS_PER_INCH = 130
# Lengths in inches, so that the gaps stay the same however many slots there are.
PAGE_WIDTH = 13.0
LEFT, RIGHT, BOTTOM = 1.1, 0.35, 0.65
HEADLINE_HEIGHT = 0.9
GAPS_ABOVE = (0.25, 0.45, 1.15, 0.5, 0.5)
MAX_NUM_STEP_MARKS = 14
STYLE: Any = {
    "font.size": 9.5,
    "text.color": colours.TEXT,
    "axes.labelcolor": colours.TEXT,
    "axes.edgecolor": colours.MUTED,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": colours.GRID,
    "xtick.color": colours.TEXT,
    "ytick.color": colours.TEXT,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
}


def write_png(data: ReportData, path: Path) -> None:
    """Draw the picture."""
    with rc_context(STYLE):
        figure = draw(data)
        FigureCanvasAgg(figure)
        figure.savefig(path, dpi=DOTS_PER_INCH, facecolor="white")


def draw(data: ReportData) -> Figure:
    """The matplotlib figure."""
    heights = [HEADLINE_HEIGHT, 2.6, 1.9, min(max(0.27 * len(data.slots), 0.9), 5.5), 1.5]
    page_height = sum(heights) + sum(GAPS_ABOVE) + BOTTOM
    figure = Figure(figsize=(PAGE_WIDTH, page_height))
    boxes = []
    top = page_height
    for gap, height in zip(GAPS_ABOVE, heights, strict=True):
        top -= gap + height
        boxes.append((LEFT / PAGE_WIDTH, top / page_height, 1 - (LEFT + RIGHT) / PAGE_WIDTH, height / page_height))
    headline_box, by_step_box, *by_time_boxes = boxes
    _draw_headline(figure.add_axes(headline_box), data)
    _draw_steps(figure, by_step_box, data)
    queue = figure.add_axes(by_time_boxes[0])
    slots = figure.add_axes(by_time_boxes[1], sharex=queue)
    throughput = figure.add_axes(by_time_boxes[2], sharex=queue)
    _draw_queue(queue, data)
    _draw_slots(slots, data)
    _draw_throughput(throughput, data)
    for axes in (queue, slots):
        axes.tick_params(labelbottom=False, bottom=False)
        _mark_steps(axes, data)
    _label_steps(queue, data)
    queue.set_xlim(0, max(data.end_s, 1e-3))
    return figure


def _draw_headline(axes: Axes, data: ReportData) -> None:
    axes.set_axis_off()
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    axes.text(0, 1, data.name, fontsize=16, fontweight="bold", va="top")
    widths = [max(len(what), 1.25 * len(how_much)) + 6 for what, how_much in data.headline]
    for index, (what, how_much) in enumerate(data.headline):
        x = sum(widths[:index]) / sum(widths)
        axes.text(x, 0.24, how_much, fontsize=11.5, fontweight="bold", va="bottom")
        axes.text(x, 0.16, what, fontsize=8.5, color=colours.MUTED, va="top")


def _draw_steps(figure: Figure, box: tuple[float, float, float, float], data: ReportData) -> None:
    """The panels over training steps."""
    left, bottom, width, height = box
    reward = figure.add_axes((left, bottom, 0.63 * width, height))
    small_left, small_width, small_height = left + 0.7 * width, 0.3 * width, 0.4 * height
    difference = figure.add_axes((small_left, bottom + height - small_height, small_width, small_height), sharex=reward)
    staleness = figure.add_axes((small_left, bottom, small_width, small_height), sharex=reward)
    _draw_reward(reward, data)
    _draw_by_step(difference, data.log_prob_difference, colours.LOG_PROB_DIFFERENCE)
    difference.set_title("engine against trainer: |Δ log-prob.|")
    difference.yaxis.set_major_locator(MaxNLocator(nbins=4))
    difference.yaxis.set_major_formatter(lambda value, _: f"{value:.2g}")
    difference.tick_params(labelbottom=False)
    _draw_by_step(staleness, data.staleness, colours.STALENESS)
    staleness.set_title("staleness of the oldest token, steps")
    staleness.set_xlabel("training step")
    staleness.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=4))
    reward.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))


def _draw_reward(axes: Axes, data: ReportData) -> None:
    _draw_by_step(axes, data.reward, colours.REWARD, "mean reward of a step")
    axes.plot(
        data.held_out.x,
        data.held_out.y,
        linestyle="none",
        marker="D",
        markersize=7,
        color=colours.HELD_OUT,
        markeredgecolor="white",
        label="held-out score",
        clip_on=False,
        zorder=5,
    )
    for step, score in zip(data.held_out.x, data.held_out.y, strict=True):
        axes.annotate(
            f"{score:.2f}",
            (step, score),
            xytext=(0, 8),
            textcoords="offset points",
            ha="center",
            fontsize=8.5,
            fontweight="bold",
            bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 0.6},
            zorder=6,
        )
    axes.set_title("reward")
    axes.set_xlabel("training step")
    axes.margins(x=0.02, y=0.14)
    axes.legend(loc="lower right")


def _draw_by_step(axes: Axes, points: Series, colour: str, label: str | None = None) -> None:
    """A curve; where it has many points, faint, with its running mean over it."""
    if len(points.x) <= 30:
        axes.plot(points.x, points.y, color=colour, linewidth=1.6, marker="o", markersize=3, label=label)
        return
    axes.plot(points.x, points.y, color=colour, linewidth=0.7, alpha=0.35)
    axes.plot(points.x, running_mean(points.y), color=colour, linewidth=2, label=label and f"{label}, smoothed")


def _draw_queue(axes: Axes, data: ReportData) -> None:
    axes.plot(data.queue.x, data.queue.y, color=colours.QUEUE, linewidth=1.3, drawstyle="steps-post")
    axes.fill_between(data.queue.x, data.queue.y, step="post", color=colours.QUEUE, alpha=0.12, linewidth=0)
    handles = [Line2D([], [], color=colours.QUEUE, label="prompt groups waiting")]
    if data.queue_bounds is not None:
        for bound in data.queue_bounds:
            axes.axhline(bound, color=colours.MUTED, linewidth=1, linestyle=(0, (4, 3)))
        low, high = data.queue_bounds
        handles.append(
            Line2D([], [], color=colours.MUTED, linestyle=(0, (4, 3)), label=f"thresholds {low:g} and {high:g}")
        )
    for action, marker, owner in (("to_rollout", "^", "rollout"), ("to_train", "v", "train")):
        chosen = [move for move in data.moves if move.action == action]
        style = {"marker": marker, "color": colours.OWNER_COLOURS[owner], "markeredgecolor": "white", "markersize": 9}
        x, y = [move.time_s for move in chosen], [move.queue_length for move in chosen]
        axes.plot(x, y, linestyle="none", zorder=5, clip_on=False, **style)  # type: ignore[arg-type]
        handles.append(Line2D([], [], linestyle="none", label=f"slot to {owner}", **style))  # type: ignore[arg-type]
    axes.set_ylim(bottom=0)
    axes.margins(y=0.12)
    axes.set_title("rollout queue and decisions", pad=24)
    axes.set_ylabel("queue length")
    axes.legend(handles=handles, loc="lower right", bbox_to_anchor=(1.0, 1.13), ncols=len(handles), borderaxespad=0)


def _draw_slots(axes: Axes, data: ReportData) -> None:
    for row, slot in enumerate(data.slots):
        for interval in slot.intervals:
            axes.broken_barh(
                [(interval.start_s, interval.end_s - interval.start_s)],
                (row - 0.39, 0.78),
                facecolors=colours.OWNER_COLOURS[interval.owner],
                edgecolor="white",
                linewidth=0.4,
            )
    for row, (above, below) in enumerate(pairwise(data.slots)):
        if above.slot_type != below.slot_type:
            axes.axhline(row + 0.5, color=colours.MUTED, linewidth=0.8)
    rows = {slot.slot_id: row for row, slot in enumerate(data.slots)}
    failures = [failure for failure in data.failures if failure.slot_id in rows]
    lost = {"marker": "X", "color": colours.OWNER_COLOURS["dead"], "markeredgecolor": "white", "markersize": 9}
    x, y = [failure.time_s for failure in failures], [rows[failure.slot_id] for failure in failures]
    axes.plot(x, y, linestyle="none", zorder=5, **lost)  # type: ignore[arg-type]
    every = 1 + len(data.slots) // 33
    axes.set_yticks(range(0, len(data.slots), every), [slot.label for slot in data.slots[::every]], fontsize=8.5)
    axes.set_ylim(len(data.slots) - 0.4, -0.6)
    axes.grid(visible=False)
    axes.tick_params(axis="y", length=0)
    axes.set_title("who has which slot")
    present = {interval.owner for slot in data.slots for interval in slot.intervals}
    handles: list[Artist] = [
        Patch(color=colour, label=owner) for owner, colour in colours.OWNER_COLOURS.items() if owner in present
    ]
    if failures:
        handles.append(Line2D([], [], linestyle="none", label="worker lost", **lost))  # type: ignore[arg-type]
    axes.legend(
        handles=handles, loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=max(len(handles), 1), borderaxespad=0.3
    )


def _draw_throughput(axes: Axes, data: ReportData) -> None:
    curves = ((data.generated_tokens_per_s, "rollout", "generated"), (data.trained_tokens_per_s, "train", "trained"))
    for points, owner, label in curves:
        axes.plot(points.x, points.y, color=colours.OWNER_COLOURS[owner], linewidth=1.5, label=label)
    axes.set_ylim(bottom=0)
    axes.set_title("throughput")
    axes.set_ylabel("tokens/s")
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.set_xlabel("seconds since the start of the run")
    axes.legend(loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=2, borderaxespad=0.3)


def _mark_steps(axes: Axes, data: ReportData) -> None:
    for time_s, _ in step_marks(data.steps, MAX_NUM_STEP_MARKS):
        axes.axvline(time_s, color=colours.TEXT, linewidth=0.6, linestyle=(0, (1, 3)), alpha=0.6)


def _label_steps(axes: Axes, data: ReportData) -> None:
    """Numbers of the marked steps above the panel."""
    marks = step_marks(data.steps, MAX_NUM_STEP_MARKS)
    for index, (time_s, step) in enumerate(marks):
        axes.annotate(
            f"step {step}" if index == 0 else str(step),
            (time_s, 1),
            xycoords=("data", "axes fraction"),
            xytext=(0, 3),
            textcoords="offset points",
            ha="center",
            fontsize=8,
            color=colours.MUTED,
        )
