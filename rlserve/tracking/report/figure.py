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
"""

from __future__ import annotations

import html
import math
from collections.abc import Iterable

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
STEP_PLACES: tuple[Place, ...] = ((2, 1), (2, 2), (3, 1), (3, 2), (4, 1), (4, 2))
QUEUE: Place = (5, 1)
SLOTS: Place = (6, 1)
THROUGHPUT: Place = (7, 1)
UTILISATION: Place = (8, 1)
BAR_PLACES: tuple[Place, ...] = ((9, 1), (9, 2), (10, 1), (10, 2))
BY_STEP = (REWARD, *STEP_PLACES)
BY_TIME = (QUEUE, SLOTS, THROUGHPUT, UTILISATION)
PLACES = (*BY_STEP, *BY_TIME, *BAR_PLACES)
LAST_BY_STEP = STEP_PLACES[-2:]
GAP = 74
"""Pixels between two panels."""
MAX_NUM_POINTS = 1000
"""Of a curve; of more, the lowest and highest of each stretch are kept, so that the page stays small."""
WHITE_EDGE = {"color": "white", "width": 1}


def draw(data: ReportData) -> go.Figure:
    """The plotly figure; panels over steps share one axis, and so do those over time."""
    heights = [260, 120, 120, 120, 210, min(max(26 * len(data.slots), 80), 560), 160, 120, 150, 150]
    inner_height = sum(heights) + GAP * (len(heights) - 1)
    panels = dict(zip(STEP_PLACES, step_panels(data), strict=True))
    panels |= {THROUGHPUT: throughput_panel(data), UTILISATION: utilisation_panel(data)}
    titles = {place: panel.title for place, panel in panels.items()}
    bars = dict(zip(BAR_PLACES, bar_panels(data), strict=True))
    titles |= {place: panel.title for place, panel in bars.items()}
    titles |= {REWARD: data.learning[0], QUEUE: "rollout queue and decisions", SLOTS: "who has which slot"}
    figure = make_subplots(
        rows=len(heights),
        cols=2,
        row_heights=heights,
        vertical_spacing=GAP / inner_height,
        horizontal_spacing=0.08,
        specs=[
            [{}, {}] if (row, 2) in (*STEP_PLACES, *BAR_PLACES) else [{"colspan": 2}, None]
            for row in range(1, len(heights) + 1)
        ],
        subplot_titles=[f"<b>{titles[place]}</b>" for place in sorted(titles)],
    )
    for place, note in zip(sorted(titles), figure.layout.annotations, strict=True):
        note.update(font={"size": 14}, x=_x_domain(figure, place)[0], xanchor="left", yshift=6)
    _draw_reward(figure, data)
    for place, panel in panels.items():
        _draw_curves(figure, place, panel, smooth=place in STEP_PLACES)
    for place, bar_panel in bars.items():
        _draw_bars(figure, place, bar_panel)
    _draw_queue(figure, data)
    _draw_slots(figure, data)
    _join_axes(figure, data)
    _mark_times(figure, data)
    _place_legends(figure)
    figure.update_layout(
        height=inner_height + 110,
        template="plotly_white",
        font={"color": colours.TEXT},
        margin={"l": 90, "r": 20, "t": 50, "b": 60},
        barmode="overlay",
    )
    return figure


def _join_axes(figure: go.Figure, data: ReportData) -> None:
    for place in STEP_PLACES:
        _update_x(figure, place, matches=_x_axis(figure, REWARD))
    for place in BY_TIME:
        _update_x(figure, place, range=[data.start_s, data.end_s])
    for place in BY_TIME[:-1]:
        _update_x(figure, place, matches=_x_axis(figure, UTILISATION))
    for place in LAST_BY_STEP:
        _update_x(figure, place, title="training step")
    _update_x(figure, UTILISATION, title=time_label(data))


def _place_legends(figure: go.Figure) -> None:
    """Every panel has its own legend, right above it."""
    for place in PLACES:
        top = next(figure.select_yaxes(row=place[0], col=place[1])).domain[1]
        corner = {"x": _x_domain(figure, place)[1], "xanchor": "right", "y": top, "yanchor": "bottom"}
        style = {"orientation": "h", "font": {"size": 11}, "bgcolor": "rgba(0,0,0,0)"}
        figure.update_layout({_legend(place): {**corner, **style}})


def _legend(place: Place) -> str:
    number = PLACES.index(place) + 1
    return "legend" if number == 1 else f"legend{number}"


def _mark_times(figure: go.Figure, data: ReportData) -> None:
    """Faint lines at some steps, and a stronger one where the run went on after a stop."""
    for time_s, step in data.step_marks:
        for row, col in (QUEUE, SLOTS):
            figure.add_vline(x=time_s, line={"dash": "dot", "width": 1, "color": colours.MUTED}, row=row, col=col)
        _note_below_queue(figure, time_s, f"step {step}")
    for time_s in data.resumes_s:
        for row, col in BY_TIME:
            figure.add_vline(x=time_s, line={"width": 1.5, "color": colours.TEXT}, row=row, col=col)


def _note_below_queue(figure: go.Figure, time_s: float, text: str) -> None:
    figure.add_annotation(
        x=time_s,
        xref=_x_axis(figure, QUEUE),
        y=next(figure.select_yaxes(row=QUEUE[0], col=QUEUE[1])).domain[0],
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


def _draw_queue(figure: go.Figure, data: ReportData) -> None:
    queue = _curve(data.queue, "prompt groups waiting", colours.QUEUE, shape="hv")
    queue.update(fill="tozeroy", fillcolor="rgba(107, 92, 165, 0.12)")
    _add(figure, QUEUE, [queue])
    if data.queue_bounds is not None:
        low, high = data.queue_bounds
        ends = Series((0, data.end_s, math.nan, 0, data.end_s), (low, low, math.nan, high, high))
        _add(figure, QUEUE, [_curve(ends, f"thresholds {low:g} and {high:g}", colours.MUTED, width=1, dash="dash")])
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
        _add(figure, QUEUE, [marks])
    figure.update_yaxes(title="queue length", rangemode="tozero", row=QUEUE[0], col=QUEUE[1])


def _draw_slots(figure: go.Figure, data: ReportData) -> None:
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
        _add(figure, SLOTS, [bars] if own else [])
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
    _add(figure, SLOTS, [crosses] if failures else [])
    figure.update_yaxes(
        categoryorder="array",
        categoryarray=[slot.label for slot in data.slots],
        autorange="reversed",
        showgrid=False,
        row=SLOTS[0],
        col=SLOTS[1],
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
