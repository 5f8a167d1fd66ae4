"""The panels of ``report.png``, each drawn into axes of its own."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator
from matplotlib.transforms import ScaledTranslation

from rlserve.tracking import colours, names
from rlserve.tracking.report.bar_panels import BarPanel
from rlserve.tracking.report.curve_panels import CurvePanel
from rlserve.tracking.report.report_data import Failure, ReportData, labelled_scores
from rlserve.tracking.report.series import Series, running_mean
from rlserve.tracking.timeline.ownership import SlotTimeline

MAX_NUM_DOTS = 30
"""Points of a curve that are drawn one by one; of more, the running mean is drawn over them."""


def draw_reward(axes: Axes, data: ReportData) -> None:
    """Mean reward, or loss, of each step, and the held-out scores."""
    held_out = data.by_step(names.HELD_OUT)
    title, label, points = data.learning
    _draw_points(axes, points, colours.REWARD, label)
    axes.plot(
        held_out.x,
        held_out.y,
        linestyle="none",
        marker="D",
        markersize=7,
        color=colours.HELD_OUT,
        markeredgecolor="white",
        label="held-out score",
        clip_on=False,
        zorder=5,
    )
    for index, text in enumerate(labelled_scores(held_out)):
        if text:
            axes.annotate(
                text,
                (held_out.x[index], held_out.y[index]),
                # Into the panel: the numbers of the axis stand to its left, and the page ends to its right.
                xytext=(7 if index == 0 else -7, 7),
                textcoords="offset points",
                ha="left" if index == 0 else "right",
                fontsize=8.5,
                fontweight="bold",
                bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 0.6},
                zorder=6,
            )
    axes.set_title(title)
    axes.margins(x=0.02, y=0.14)
    _legend_above(axes)


def draw_curves(axes: Axes, panel: CurvePanel, *, legend_above: bool = False) -> None:
    """A panel of curves alone."""
    for curve in panel.curves:
        if legend_above:
            axes.plot(curve.points.x, curve.points.y, color=curve.colour, linewidth=1.5, label=curve.label)
        elif curve.points.x:
            _draw_points(axes, curve.points, curve.colour, curve.label)
    axes.set_title(panel.title)
    axes.yaxis.set_major_locator(MaxNLocator(nbins=4, steps=[1, 2, 5, 10], integer=panel.is_whole))
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}")
    if panel.is_share:
        axes.set_ylim(-0.04, 1.04)
    elif panel.from_zero:
        axes.set_ylim(0, _top(panel))
    if legend_above:
        _legend_above(axes)
    elif any(curve.label and curve.points.x for curve in panel.curves):
        axes.legend(loc="best", fontsize=7.5)


def draw_bars(axes: Axes, panel: BarPanel) -> None:
    """A panel of bars, each with its number where one label has one bar."""
    height = 0.8 / max(len(panel.bars), 1)
    for row, bars in enumerate(panel.bars):
        places = [index + (row - (len(panel.bars) - 1) / 2) * height for index in range(len(bars.values))]
        drawn = axes.barh(places, bars.values, height, color=bars.colour, label=bars.label)
        if bars.errors:
            axes.errorbar(bars.values, places, xerr=bars.errors, linestyle="none", color=colours.TEXT, linewidth=0.8)
        if len(panel.bars) == 1:
            axes.bar_label(drawn, [panel.text(value) for value in bars.values], fontsize=7.5, padding=2)
    axes.set_yticks(range(len(panel.labels)), list(panel.labels), fontsize=7.5)
    axes.set_ylim(max(len(panel.labels), 1) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=4, steps=[1, 2, 5, 10]))
    axes.xaxis.set_major_formatter(lambda value, _: panel.text(value))
    axes.grid(visible=False, axis="y")
    axes.margins(x=0.15)
    axes.set_title(panel.title)
    if not panel.has_values:
        axes.set_xticks([])
        axes.text(0.5, 0.5, "not measured", transform=axes.transAxes, ha="center", color=colours.MUTED, fontsize=8.5)
    elif len(panel.bars) > 1:
        axes.axvline(0, color=colours.MUTED, linewidth=0.8)
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), fontsize=7, ncols=2, borderaxespad=0)


def draw_queue(axes: Axes, data: ReportData) -> None:
    """Queue length with its thresholds, and what the manager decided."""
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


def draw_slots(axes: Axes, data: ReportData, *, lift: float = 0.0) -> None:
    """A row a slot, coloured by its owner, with the workers that were lost. Title and legend stand ``lift`` points
    higher than elsewhere."""
    draw_slot_rows(axes, data.slots, data.failures)
    if lift:
        axes.set_title(axes.get_title(loc="left"), pad=8 + lift)
        legend = axes.get_legend()
        assert legend is not None, "the owners"
        figure = axes.get_figure(root=True)
        assert figure is not None
        up = ScaledTranslation(0, lift / 72, figure.dpi_scale_trans)
        legend.set_bbox_to_anchor((1.0, 1.0), transform=axes.transAxes + up)


def draw_slot_rows(axes: Axes, slots: Sequence[SlotTimeline], lost_workers: Sequence[Failure] = ()) -> None:
    """The same of any timelines."""
    for row, slot in enumerate(slots):
        for interval in slot.intervals:
            axes.broken_barh(
                [(interval.start_s, interval.end_s - interval.start_s)],
                (row - 0.39, 0.78),
                facecolors=colours.OWNER_COLOURS[interval.owner],
                edgecolor="white",
                linewidth=0.4,
            )
    for row, (above, below) in enumerate(pairwise(slots)):
        if above.slot_type != below.slot_type:
            axes.axhline(row + 0.5, color=colours.MUTED, linewidth=0.8)
    rows = {slot.slot_id: row for row, slot in enumerate(slots)}
    failures = [failure for failure in lost_workers if failure.slot_id in rows]
    lost = {"marker": "X", "color": colours.OWNER_COLOURS["dead"], "markeredgecolor": "white", "markersize": 9}
    x, y = [failure.time_s for failure in failures], [rows[failure.slot_id] for failure in failures]
    axes.plot(x, y, linestyle="none", zorder=5, **lost)  # type: ignore[arg-type]
    every = 1 + len(slots) // 33
    axes.set_yticks(range(0, len(slots), every), [slot.label for slot in slots[::every]], fontsize=8.5)
    axes.set_ylim(len(slots) - 0.4, -0.6)
    axes.grid(visible=False)
    axes.tick_params(axis="y", length=0)
    axes.set_title("who has which slot")
    present = {interval.owner for slot in slots for interval in slot.intervals}
    handles: list[Artist] = [
        Patch(color=colour, label=owner) for owner, colour in colours.OWNER_COLOURS.items() if owner in present
    ]
    if failures:
        handles.append(Line2D([], [], linestyle="none", label="worker lost", **lost))  # type: ignore[arg-type]
    axes.legend(
        handles=handles, loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=max(len(handles), 1), borderaxespad=0.3
    )


def mark_times(axes: Axes, data: ReportData) -> None:
    """Faint lines at some steps, and a stronger one where the run went on after a stop."""
    for time_s, _ in data.step_marks:
        axes.axvline(time_s, color=colours.TEXT, linewidth=0.6, linestyle=(0, (1, 3)), alpha=0.6)
    for time_s in data.resumes_s:
        axes.axvline(time_s, color=colours.TEXT, linewidth=1.2)


def label_steps(axes: Axes, data: ReportData) -> None:
    """Numbers of the marked steps above the panel."""
    marks = data.step_marks
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


def _draw_points(axes: Axes, points: Series, colour: str, label: str) -> None:
    """A curve; where it has many points, faint, with its running mean over it."""
    if len(points.x) <= MAX_NUM_DOTS:
        axes.plot(points.x, points.y, color=colour, linewidth=1.6, marker="o", markersize=3, label=label)
        return
    axes.plot(points.x, points.y, color=colour, linewidth=0.7, alpha=0.35)
    axes.plot(points.x, running_mean(points.y), color=colour, linewidth=2, label=label)


def _legend_above(axes: Axes) -> None:
    num_entries = len(axes.get_legend_handles_labels()[1])
    axes.legend(loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=max(num_entries, 1), borderaxespad=0.3)


def _top(panel: CurvePanel) -> float:
    """Upper end of an axis that begins at 0."""
    highest = max((y for curve in panel.curves for y in curve.points.y if y == y), default=0.0)  # NaN is no height
    return 1.08 * highest if highest > 0 else 1.0
