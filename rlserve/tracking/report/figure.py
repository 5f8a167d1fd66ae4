"""The figure of ``report.html``, by plotly: the panels of the PNG with a mouse in them.

::

    reward (wide)
    KL            | entropy
    answer length | shares
    engine–trainer| staleness        these over training steps, and
    queue (wide)                     these over time
    slots (wide)
    throughput (wide)
    utilisation by role (wide)
    slots' time   | rate after moves
    staleness     | efficiency          bars

A run that learns from a data set has the wide ones without the queue, and what the slots' time went into.
"""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from rlserve.tracking import colours, names
from rlserve.tracking.report.bar_panels import BarPanel, Bars, bar_panels
from rlserve.tracking.report.curve_panels import (
    CurvePanel,
    step_panels,
    throughput_panel,
    time_label,
    utilisation_panel,
)
from rlserve.tracking.report.report_data import ReportData, labelled_scores
from rlserve.tracking.report.series import Series, running_mean, thinned

Place = tuple[int, int]
"""Row and column of a panel, from 1."""
REWARD: Place = (1, 1)


@dataclass(frozen=True, kw_only=True)
class Grid:
    """Where the other panels are, below each other and, some of them, two in a row."""

    by_step: tuple[Place, ...]
    queue: Place | None
    slots: Place
    throughput: Place
    utilisation: Place
    bars: tuple[Place, ...]
    heights: tuple[int, ...]
    """Of the rows, in pixels."""

    @property
    def by_time(self) -> tuple[Place, ...]:
        """Panels over time, from top to bottom."""
        whole = (self.slots, self.throughput, self.utilisation)
        return whole if self.queue is None else (self.queue, *whole)

    @property
    def highest_by_time(self) -> Place:
        """Below it stand the numbers of the steps."""
        return self.by_time[0]

    def num_columns(self, row: int) -> int:
        """Panels in a row."""
        return 2 if (row, 2) in (*self.by_step, *self.bars) else 1

    def is_wide(self, row: int) -> bool:
        """Whether its panel takes the whole width."""
        return (row, 1) not in (*self.by_step, *self.bars)


def grid_of(data: ReportData) -> Grid:
    """A run that generates nothing has no queue, and fewer panels of the others."""
    heights = [260]

    def rows(num_panels: int, height: int) -> tuple[Place, ...]:
        first = len(heights) + 1
        heights.extend([height] * -(-num_panels // 2))
        return tuple((first + index // 2, 1 + index % 2) for index in range(num_panels))

    def row(height: int) -> Place:
        heights.append(height)
        return len(heights), 1

    by_step = rows(len(step_panels(data)), 120)
    queue = row(210) if data.generates else None
    slots, throughput, utilisation = row(min(max(26 * len(data.slots), 80), 560)), row(160), row(120)
    return Grid(
        by_step=by_step,
        queue=queue,
        slots=slots,
        throughput=throughput,
        utilisation=utilisation,
        bars=rows(len(bar_panels(data)), 150),
        heights=tuple(heights),
    )


GAP = 74
"""Pixels between two panels."""
MAX_NUM_POINTS = 1000
"""Of a curve; of more, the lowest and highest of each stretch are kept, so that the page stays small."""
WHITE_EDGE = {"color": "white", "width": 1}


def draw(data: ReportData) -> go.Figure:
    """The plotly figure; panels over steps share one axis, and so do those over time."""
    grid = grid_of(data)
    inner_height = sum(grid.heights) + GAP * (len(grid.heights) - 1)
    panels = dict(zip(grid.by_step, step_panels(data), strict=True))
    panels |= {grid.throughput: throughput_panel(data), grid.utilisation: utilisation_panel(data)}
    bars = dict(zip(grid.bars, bar_panels(data), strict=True))
    titles = {place: panel.title for place, panel in panels.items()} | {
        place: panel.title for place, panel in bars.items()
    }
    titles |= {REWARD: data.learning[0], grid.slots: "who has which slot"}
    if grid.queue is not None:
        titles[grid.queue] = "rollout queue and decisions"
    figure = _empty_figure(grid, titles, inner_height)
    _draw_reward(figure, data)
    for place, panel in panels.items():
        _draw_curves(figure, place, panel, smooth=place in grid.by_step)
    for place, bar_panel in bars.items():
        _draw_bars(figure, place, bar_panel)
    if grid.queue is not None:
        _draw_queue(figure, grid.queue, data)
    _draw_slots(figure, grid.slots, data)
    _join_axes(figure, grid, data)
    _mark_times(figure, grid, data)
    _place_legends(figure, titles)
    figure.update_layout(
        height=inner_height + 110,
        template="plotly_white",
        font={"color": colours.TEXT},
        margin={"l": 90, "r": 20, "t": 50, "b": 60},
        barmode="overlay",
    )
    return figure


def _empty_figure(grid: Grid, titles: Mapping[Place, str], inner_height: int) -> go.Figure:
    columns: dict[tuple[bool, int], list[dict[str, int] | None]] = {
        (True, 1): [{"colspan": 2}, None],
        (False, 1): [{}, None],
        (False, 2): [{}, {}],
    }
    figure = make_subplots(
        rows=len(grid.heights),
        cols=2,
        row_heights=list(grid.heights),
        vertical_spacing=GAP / inner_height,
        horizontal_spacing=0.08,
        specs=[columns[grid.is_wide(row), grid.num_columns(row)] for row in range(1, len(grid.heights) + 1)],
        subplot_titles=[f"<b>{titles[place]}</b>" for place in sorted(titles)],
    )
    for place, note in zip(sorted(titles), figure.layout.annotations, strict=True):
        note.update(font={"size": 14}, x=_x_domain(figure, place)[0], xanchor="left", yshift=6)
    return figure


def _join_axes(figure: go.Figure, grid: Grid, data: ReportData) -> None:
    for place in grid.by_step:
        _update_x(figure, place, matches=_x_axis(figure, REWARD))
    for place in grid.by_time:
        _update_x(figure, place, range=[data.start_s, data.end_s])
    for place in grid.by_time[:-1]:
        _update_x(figure, place, matches=_x_axis(figure, grid.utilisation))
    for place in grid.by_step[-2:] or (REWARD,):
        _update_x(figure, place, title="training step")
    _update_x(figure, grid.utilisation, title=time_label(data))


def _place_legends(figure: go.Figure, places: Iterable[Place]) -> None:
    """Every panel has its own legend, right above it."""
    for place in places:
        top = next(figure.select_yaxes(row=place[0], col=place[1])).domain[1]
        corner = {"x": _x_domain(figure, place)[1], "xanchor": "right", "y": top, "yanchor": "bottom"}
        style = {"orientation": "h", "font": {"size": 11}, "bgcolor": "rgba(0,0,0,0)"}
        figure.update_layout({_legend(place): {**corner, **style}})


def _legend(place: Place) -> str:
    """A name of the panel's own."""
    return f"legend{2 * place[0] + place[1]}"


def _mark_times(figure: go.Figure, grid: Grid, data: ReportData) -> None:
    """Faint lines at some steps, and a stronger one where the run went on after a stop."""
    for time_s, step in data.step_marks:
        for row, col in grid.by_time[: grid.by_time.index(grid.slots) + 1]:
            figure.add_vline(x=time_s, line={"dash": "dot", "width": 1, "color": colours.MUTED}, row=row, col=col)
        _note_below(figure, grid.highest_by_time, time_s, f"step {step}")
    for time_s in data.resumes_s:
        for row, col in grid.by_time:
            figure.add_vline(x=time_s, line={"width": 1.5, "color": colours.TEXT}, row=row, col=col)


def _note_below(figure: go.Figure, place: Place, time_s: float, text: str) -> None:
    figure.add_annotation(
        x=time_s,
        xref=_x_axis(figure, place),
        y=next(figure.select_yaxes(row=place[0], col=place[1])).domain[0],
        yref="paper",
        text=text,
        font={"size": 10, "color": colours.MUTED},
        showarrow=False,
        yshift=-28,
    )


def _curve(points: Series, name: str, colour: str, **style: object) -> go.Scatter:
    drawn = thinned(points, MAX_NUM_POINTS)
    line = {"color": colour, "width": 1.5, **style}
    return go.Scatter(x=drawn.x, y=drawn.y, name=name, mode="lines", line=line, showlegend=bool(name))


def _faint_and_smoothed(points: Series, name: str, colour: str) -> list[go.Scatter]:
    """Every point, faint, and the running mean over it."""
    each = _curve(points, "", colour, width=1)
    each.update(opacity=0.4, hoverinfo="skip")
    smoothed = _curve(Series(points.x, tuple(running_mean(points.y))), name, colour, width=2.5)
    return [each, smoothed]


def _draw_curves(figure: go.Figure, place: Place, panel: CurvePanel, *, smooth: bool) -> None:
    for curve in panel.curves:
        if smooth:
            _add(figure, place, _faint_and_smoothed(curve.points, curve.label, curve.colour))
        else:
            _add(figure, place, [_curve(curve.points, curve.label, curve.colour)])
    style: dict[str, object] = {"nticks": 5, "exponentformat": "none" if panel.from_zero else "e"}
    if panel.is_share:
        style["range"] = [-0.04, 1.04]
    elif panel.from_zero:
        style["rangemode"] = "tozero"
    if panel.is_whole:
        style["dtick"] = 1
    figure.update_yaxes(**style, row=place[0], col=place[1])


def _draw_bars(figure: go.Figure, place: Place, panel: BarPanel) -> None:
    traces = [
        go.Bar(
            orientation="h",
            y=list(panel.labels),
            x=[100 * value if panel.is_percent else value for value in bars.values],
            text=[panel.text(value) for value in bars.values] if len(panel.bars) == 1 else None,
            name=bars.label,
            showlegend=bool(bars.label),
            marker={"color": bars.colour},
            offsetgroup=str(index),
            error_x=_whiskers(panel, bars),
            hovertemplate="%{y}: %{x:.4~g}<extra></extra>",
        )
        for index, bars in enumerate(panel.bars)
        if bars.values
    ]
    _add(figure, place, traces)
    figure.update_yaxes(type="category", autorange="reversed", row=place[0], col=place[1])


def _whiskers(panel: BarPanel, bars: Bars) -> dict[str, object] | None:
    """How uncertain bars are; None where that is not known."""
    lengths = [100 * error if panel.is_percent else error for error in bars.errors]
    return {"type": "data", "array": lengths, "color": colours.TEXT, "thickness": 1} if lengths else None


def _draw_reward(figure: go.Figure, data: ReportData) -> None:
    scores = data.by_step(names.HELD_OUT)
    last = len(scores.x) - 1
    held_out = go.Scatter(
        x=scores.x,
        y=scores.y,
        name="held-out score",
        mode="markers+text",
        text=labelled_scores(scores),
        # Into the panel: the numbers of the axis stand to its left.
        textposition=["top left" if index == last > 0 else "top right" for index in range(len(scores.x))],
        marker={"symbol": "diamond", "size": 11, "color": colours.HELD_OUT},
        hovertemplate="step %{x}: %{y:.4~f}",
        cliponaxis=False,
    )
    _, label, points = data.learning
    _add(figure, REWARD, [*_faint_and_smoothed(points, label, colours.REWARD), held_out])


def _draw_queue(figure: go.Figure, place: Place, data: ReportData) -> None:
    queue = _curve(data.queue, "prompt groups waiting", colours.QUEUE, shape="hv")
    queue.update(fill="tozeroy", fillcolor="rgba(107, 92, 165, 0.12)")
    _add(figure, place, [queue])
    if data.queue_bounds is not None:
        low, high = data.queue_bounds
        ends = Series((0, data.end_s, math.nan, 0, data.end_s), (low, low, math.nan, high, high))
        _add(figure, place, [_curve(ends, f"thresholds {low:g} and {high:g}", colours.MUTED, width=1, dash="dash")])
    for action, symbol, owner in (("to_rollout", "triangle-up", "rollout"), ("to_train", "triangle-down", "train")):
        chosen = [move for move in data.moves if move.action == action]
        marks = go.Scatter(
            x=[move.time_s for move in chosen],
            y=[move.queue_length for move in chosen],
            text=[html.escape(move.reason) for move in chosen],
            name=f"slot to {owner}",
            mode="markers",
            marker={"symbol": symbol, "size": 12, "color": colours.OWNER_COLOURS[owner], "line": WHITE_EDGE},
            hovertemplate="%{x:.1f} s: %{text}",
            cliponaxis=False,
        )
        _add(figure, place, [marks])
    figure.update_yaxes(title="queue length", rangemode="tozero", row=place[0], col=place[1])


def _draw_slots(figure: go.Figure, place: Place, data: ReportData) -> None:
    """One horizontal bar an interval; bars of one owner are one entry of the legend."""
    for owner, colour in colours.OWNER_COLOURS.items():
        own = [(slot.label, part) for slot in data.slots for part in slot.intervals if part.owner == owner]
        bars = go.Bar(
            orientation="h",
            y=[label for label, _ in own],
            base=[part.start_s for _, part in own],
            x=[part.end_s - part.start_s for _, part in own],
            customdata=[part.end_s for _, part in own],
            hovertemplate=f"%{{y}}: {owner} from %{{base:.1f}} s to %{{customdata:.1f}} s<extra></extra>",
            name=owner,
            marker={"color": colour, "line": {"width": 0}},
        )
        _add(figure, place, [bars] if own else [])
    labels = {slot.slot_id: slot.label for slot in data.slots}
    failures = [failure for failure in data.failures if failure.slot_id in labels]
    crosses = go.Scatter(
        x=[failure.time_s for failure in failures],
        y=[labels[failure.slot_id] for failure in failures],
        text=[html.escape(failure.reason) for failure in failures],
        name="worker lost",
        mode="markers",
        marker={"symbol": "x", "size": 10, "color": colours.OWNER_COLOURS["dead"], "line": WHITE_EDGE},
        hovertemplate="%{x:.1f} s: %{y} lost: %{text}<extra></extra>",
    )
    _add(figure, place, [crosses] if failures else [])
    figure.update_yaxes(
        categoryorder="array",
        categoryarray=[slot.label for slot in data.slots],
        autorange="reversed",
        showgrid=False,
        row=place[0],
        col=place[1],
    )


def _add(figure: go.Figure, place: Place, traces: Iterable[go.Bar | go.Scatter]) -> None:
    for trace in traces:
        trace.legend = _legend(place)
        figure.add_trace(trace, row=place[0], col=place[1])


def _update_x(figure: go.Figure, place: Place, **values: object) -> None:
    figure.update_xaxes(**values, row=place[0], col=place[1])


def _x_axis(figure: go.Figure, place: Place) -> str:
    """The name that other parts of the figure call the axis by: ``x``, ``x2`` …"""
    return next(figure.select_yaxes(row=place[0], col=place[1])).anchor  # type: ignore[no-any-return]


def _x_domain(figure: go.Figure, place: Place) -> tuple[float, float]:
    return tuple(next(figure.select_xaxes(row=place[0], col=place[1])).domain)
