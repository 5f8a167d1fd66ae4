"""Curves of the report: thinned, broken, smoothed and merged."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from rlserve.tracking.report.series import Series, broken_at, merge_steps, running_mean, series, thinned

CURVES = st.lists(st.one_of(st.floats(-1e6, 1e6), st.just(float("nan"))), max_size=300).map(
    lambda values: Series(tuple(map(float, range(len(values)))), tuple(values))
)


@given(points=CURVES, max_num_points=st.integers(4, 100))
def test_thinning_keeps_extremes_breaks_and_order(points: Series, max_num_points: int) -> None:
    kept = thinned(points, max_num_points)
    original = dict(zip(points.x, points.y, strict=True))
    known = [y for y in kept.y if not np.isnan(y)]
    assert list(kept.x) == sorted(set(kept.x))
    assert all(original[x] is y for x, y in zip(kept.x, kept.y, strict=True))
    if len(points.x) > max_num_points:
        assert len(known) <= max_num_points
    assert np.isnan(kept.y).sum() == np.isnan(points.y).sum()
    if known:
        assert (min(known), max(known)) == (np.nanmin(points.y), np.nanmax(points.y))


def test_a_curve_is_broken_between_its_points_only() -> None:
    points = Series((1.0, 2.0, 4.0), (10.0, 20.0, 40.0))
    assert broken_at(points, [0.0, 9.0]) == points
    assert broken_at(points, [3.0]).x == (1.0, 2.0, 3.0, 4.0)
    assert [np.isnan(y) for y in broken_at(points, [4.0]).y] == [False, False, True, False]
    assert broken_at(Series(), [1.0]) == Series()


def test_running_mean_keeps_the_length_and_a_constant() -> None:
    assert running_mean([]) == []
    assert running_mean([3.0] * 100) == [3.0] * 100
    assert running_mean([0.0, 3.0, 0.0]) == [1.0, 1.0, 1.0]


def test_steps_logged_in_parts_are_merged_and_unknown_numbers_left_out() -> None:
    metrics = merge_steps([{"step": 2, "x": 1.0}, {"step": 1, "x": None}, {"step": 2, "y": 3.0}])
    assert metrics == [{"step": 1, "x": None}, {"step": 2, "x": 1.0, "y": 3.0}]
    assert series(metrics, "step", "x") == Series((2,), (1.0,))
