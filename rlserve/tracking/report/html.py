"""``report.html``: the same picture with a mouse in it, by plotly; one file that needs no network."""

from __future__ import annotations

import html
import math
from collections.abc import Iterable
from pathlib import Path

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from rlserve.tracking import colours
from rlserve.tracking.report.data import ReportData, Series, running_mean, step_marks

REWARD_ROW, DIFFERENCE_ROW, STALENESS_ROW, QUEUE_ROW, SLOTS_ROW, THROUGHPUT_ROW = range(1, 7)
BY_STEP_ROWS = (REWARD_ROW, DIFFERENCE_ROW, STALENESS_ROW)
BY_TIME_ROWS = (QUEUE_ROW, SLOTS_ROW, THROUGHPUT_ROW)
TITLES = (
    "reward",
    "engine against trainer: mean |Δ log-probability| of a token",
    "staleness of the oldest token, steps",
    "rollout queue and decisions",
    "who has which slot",
    "throughput",
)
GAP = 80
"""Pixels between two panels."""
MAX_NUM_STEP_MARKS = 14
WHITE_EDGE = {"color": "white", "width": 1}
PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<style>
body {{ font: 15px/1.45 system-ui, sans-serif; color: {text}; max-width: 1200px; margin: 2rem auto; padding: 0 1rem; }}
h1 {{ margin: 0 0 1rem; }}
.facts {{ display: flex; flex-wrap: wrap; gap: .8rem 2.4rem; margin: 0 0 1rem; }}
.facts b {{ display: block; font-size: 1.2rem; }}
.facts span, td:first-child {{ color: {muted}; }}
td {{ padding: .15rem 1.5rem .15rem 0; vertical-align: top; }}
</style></head><body>
<h1>{title}</h1>
<div class="facts">{facts}</div>
{figure}
<table>{summary}</table>
</body></html>
"""


def write_html(data: ReportData, path: Path) -> None:
    """Write the page."""
    figure = draw(data).to_html(full_html=False, include_plotlyjs=True, config={"displaylogo": False})
    page = PAGE.format(
        title=html.escape(data.name),
        text=colours.TEXT,
        muted=colours.MUTED,
        facts="".join(
            f"<div><b>{html.escape(much)}</b><span>{html.escape(what)}</span></div>" for what, much in data.headline
        ),
        figure=figure,
        summary="".join(
            f"<tr><td>{html.escape(what)}</td><td>{html.escape(much)}</td></tr>" for what, much in data.summary
        ),
    )
    path.write_text(page, encoding="utf-8")


def draw(data: ReportData) -> go.Figure:
    """The plotly figure: one panel a row; those over steps share one axis, and so do those over time."""
    heights = [260, 120, 90, 210, min(max(26 * len(data.slots), 80), 560), 160]
    inner_height = sum(heights) + GAP * (len(heights) - 1)
    figure = make_subplots(
        rows=len(heights),
        cols=1,
        row_heights=heights,
        vertical_spacing=GAP / inner_height,
        subplot_titles=[f"<b>{title}</b>" for title in TITLES],
    )
    figure.update_annotations(font={"size": 14}, x=0, xanchor="left", yshift=6)
    _draw_reward(figure, data)
    _add(figure, DIFFERENCE_ROW, _faint_and_smoothed(data.log_prob_difference, "", colours.LOG_PROB_DIFFERENCE))
    _add(figure, STALENESS_ROW, _faint_and_smoothed(data.staleness, "", colours.STALENESS))
    _draw_queue(figure, data)
    _draw_slots(figure, data)
    _draw_throughput(figure, data)
    figure.update_yaxes(exponentformat="e", nticks=4, row=DIFFERENCE_ROW, col=1)
    figure.update_yaxes(rangemode="tozero", dtick=1, row=STALENESS_ROW, col=1)
    for row in BY_STEP_ROWS:
        figure.update_xaxes(matches=f"x{STALENESS_ROW}", row=row, col=1)
    for row in BY_TIME_ROWS:
        figure.update_xaxes(range=[0, data.end_s], matches=f"x{THROUGHPUT_ROW}", row=row, col=1)
    figure.update_xaxes(title="training step", row=STALENESS_ROW, col=1)
    figure.update_xaxes(title="seconds since the start of the run", row=THROUGHPUT_ROW, col=1)
    _mark_steps(figure, data)
    _place_legends(figure)
    figure.update_layout(
        height=inner_height + 110,
        template="plotly_white",
        font={"color": colours.TEXT},
        margin={"l": 90, "r": 20, "t": 50, "b": 60},
        barmode="overlay",
    )
    return figure


def _place_legends(figure: go.Figure) -> None:
    """Every panel has its own legend, right above it."""
    for row in range(1, len(TITLES) + 1):
        top = next(figure.select_yaxes(row=row, col=1)).domain[1]
        place = {"orientation": "h", "x": 1, "xanchor": "right", "y": top, "yanchor": "bottom"}
        figure.update_layout({_legend(row): {**place, "font": {"size": 11}, "bgcolor": "rgba(0,0,0,0)"}})


def _legend(row: int) -> str:
    return "legend" if row == 1 else f"legend{row}"


def _mark_steps(figure: go.Figure, data: ReportData) -> None:
    for time_s, step in step_marks(data.steps, MAX_NUM_STEP_MARKS):
        for row in (QUEUE_ROW, SLOTS_ROW):
            figure.add_vline(x=time_s, line={"dash": "dot", "width": 1, "color": colours.MUTED}, row=row, col=1)
        figure.add_annotation(
            x=time_s,
            xref=f"x{QUEUE_ROW}",
            y=next(figure.select_yaxes(row=QUEUE_ROW, col=1)).domain[0],
            yref="paper",
            text=f"step {step}",
            font={"size": 10, "color": colours.MUTED},
            showarrow=False,
            yshift=-28,
        )


def _curve(points: Series, name: str, colour: str, **style: object) -> go.Scatter:
    line = {"color": colour, "width": 1.5, **style}
    return go.Scatter(x=points.x, y=points.y, name=name, mode="lines", line=line, showlegend=bool(name))


def _faint_and_smoothed(points: Series, name: str, colour: str) -> list[go.Scatter]:
    """Every point, faint, and the running mean over it."""
    each = _curve(points, name, colour, width=1)
    each.opacity = 0.4
    smoothed = Series(points.x, tuple(running_mean(points.y)))
    return [each, _curve(smoothed, name and "smoothed", colour, width=2.5)]


def _draw_reward(figure: go.Figure, data: ReportData) -> None:
    held_out = go.Scatter(
        x=data.held_out.x,
        y=data.held_out.y,
        name="held-out score",
        mode="markers+text",
        text=[f"{score:.2f}" for score in data.held_out.y],
        textposition="top center",
        marker={"symbol": "diamond", "size": 11, "color": colours.HELD_OUT},
        cliponaxis=False,
    )
    _add(figure, REWARD_ROW, [*_faint_and_smoothed(data.reward, "mean reward of a step", colours.REWARD), held_out])


def _draw_queue(figure: go.Figure, data: ReportData) -> None:
    queue = _curve(data.queue, "prompt groups waiting", colours.QUEUE, shape="hv")
    queue.fill = "tozeroy"
    queue.fillcolor = "rgba(107, 92, 165, 0.12)"
    _add(figure, QUEUE_ROW, [queue])
    if data.queue_bounds is not None:
        low, high = data.queue_bounds
        ends = Series((0, data.end_s, math.nan, 0, data.end_s), (low, low, math.nan, high, high))
        _add(figure, QUEUE_ROW, [_curve(ends, f"thresholds {low:g} and {high:g}", colours.MUTED, width=1, dash="dash")])
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
        _add(figure, QUEUE_ROW, [marks])
    figure.update_yaxes(title="queue length", rangemode="tozero", row=QUEUE_ROW, col=1)


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
        _add(figure, SLOTS_ROW, [bars] if own else [])
    labels = {slot.slot_id: slot.label for slot in data.slots}
    failures = [failure for failure in data.failures if failure.slot_id in labels]
    crosses = go.Scatter(
        x=[failure.time_s for failure in failures],
        y=[labels[failure.slot_id] for failure in failures],
        text=[html.escape(failure.reason) for failure in failures],
        name="worker lost",
        mode="markers",
        marker={
            "symbol": "x",
            "size": 10,
            "color": colours.OWNER_COLOURS["dead"],
            "line": WHITE_EDGE,
        },
        hovertemplate="%{x:.1f} s: %{y} lost: %{text}<extra></extra>",
    )
    _add(figure, SLOTS_ROW, [crosses] if failures else [])
    figure.update_yaxes(
        categoryorder="array",
        categoryarray=[slot.label for slot in data.slots],
        autorange="reversed",
        showgrid=False,
        row=SLOTS_ROW,
        col=1,
    )


def _draw_throughput(figure: go.Figure, data: ReportData) -> None:
    generated = _curve(data.generated_tokens_per_s, "generated", colours.OWNER_COLOURS["rollout"])
    trained = _curve(data.trained_tokens_per_s, "trained", colours.OWNER_COLOURS["train"])
    _add(figure, THROUGHPUT_ROW, [generated, trained])
    figure.update_yaxes(title="tokens/s", rangemode="tozero", row=THROUGHPUT_ROW, col=1)


def _add(figure: go.Figure, row: int, traces: Iterable[go.Bar | go.Scatter]) -> None:
    for trace in traces:
        trace.legend = _legend(row)
        figure.add_trace(trace, row=row, col=1)
