"""Curves as plain data, and what is done to them before they are drawn. Pure functions."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from rlserve.tracking.jsonl import Line


@dataclass(frozen=True)
class Series:
    """Points of a curve; ``x`` is steps or seconds. Where ``y`` is NaN, the curve is broken."""

    x: tuple[float, ...] = ()
    y: tuple[float, ...] = ()


def merge_steps(records: Iterable[Line]) -> list[dict[str, Any]]:
    """One record a step, in order, where a step was logged in several."""
    merged: dict[int, dict[str, Any]] = {}
    for record in records:
        merged.setdefault(record["step"], {}).update(record)
    return [merged[step] for step in sorted(merged)]


def series(records: Iterable[Line], x: str, y: str) -> Series:
    """The points of all records that have both numbers, ordered by x."""
    points = [(record[x], record[y]) for record in records if record.get(x) is not None and record.get(y) is not None]
    points.sort(key=lambda point: point[0])
    return Series(tuple(point[0] for point in points), tuple(point[1] for point in points))


def broken_at(points: Series, breaks: Iterable[float]) -> Series:
    """The curve, broken at each of ``breaks`` that lies between two of its points."""
    pairs = list(zip(points.x, points.y, strict=True))
    inner = [(place, math.nan) for place in breaks if pairs and pairs[0][0] < place <= pairs[-1][0]]
    # A break comes before a point at the same place, which belongs to what follows it.
    merged = sorted([*inner, *pairs], key=lambda pair: (pair[0], not math.isnan(pair[1])))
    return Series(tuple(x for x, _ in merged), tuple(y for _, y in merged))


def running_mean(values: Sequence[float]) -> list[float]:
    """Smoothed over a centred window of about a twentieth of the values, at least 5; as long as the input."""
    half = max(2, len(values) // 40)
    windows = [values[max(0, index - half) : index + half + 1] for index in range(len(values))]
    return [sum(window) / len(window) for window in windows]


def thinned(points: Series, max_num_points: int) -> Series:
    """At most ``max_num_points``, at least 4: of each stretch of the curve its lowest and its highest point.

    Breaks of the curve are kept besides.
    """
    if len(points.x) <= max_num_points:
        return points
    num_stretches = max_num_points // 2
    kept: set[int] = set()
    for stretch in range(num_stretches):
        start, end = (len(points.x) * edge // num_stretches for edge in (stretch, stretch + 1))
        known = [index for index in range(start, end) if not math.isnan(points.y[index])]
        kept.update(index for index in range(start, end) if math.isnan(points.y[index]))
        if known:
            kept.update((min(known, key=points.y.__getitem__), max(known, key=points.y.__getitem__)))
    order = sorted(kept)
    return Series(tuple(points.x[index] for index in order), tuple(points.y[index] for index in order))


def step_marks(steps: Series, max_num_marks: int, min_gap_s: float) -> list[tuple[float, int]]:
    """Seconds and number of some round steps (every 1, 2, 5, 10 …) to be marked on a time axis, ``min_gap_s`` apart."""
    if not steps.y:
        return []
    stride, factors = 1, [2, 2.5, 2]
    while len(steps.y) / stride > max_num_marks:
        stride = int(stride * factors[0])
        factors = factors[1:] + factors[:1]
    marks: list[tuple[float, int]] = []
    for time_s, step in zip(steps.x, steps.y, strict=True):
        if step % stride == 0 and (not marks or time_s - marks[-1][0] >= min_gap_s):
            marks.append((time_s, int(step)))
    return marks
