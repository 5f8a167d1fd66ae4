"""Windows that end at the last change: quick where there is one, and quiet where there is none."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlserve.manager.measurement.windows import AmountWindow, ShareWindow


def groups_until(share_before: float, share_after: float, *, off: float, seed: int) -> int:
    """How many groups after a change of the share the mean is within ``off`` of the new one, and stays 10 groups."""
    random_numbers, window = random.Random(seed), ShareWindow(1024)
    for _ in range(300):
        window.add(float(random_numbers.random() < share_before))
    in_a_row = 0
    for number in range(1, 2000):
        window.add(float(random_numbers.random() < share_after))
        assert window.mean is not None
        in_a_row = in_a_row + 1 if abs(window.mean - share_after) <= off else 0
        if in_a_row == 10:
            return number - 9
    raise AssertionError("never")


@pytest.mark.parametrize(
    ("before", "after", "at_most"), [(1.0, 0.4, 16), (0.4, 1.0, 24), (0.25, 1.0, 16), (0.7, 0.4, 80), (0.4, 0.7, 80)]
)
def test_a_change_of_the_share_is_noticed_within_dozens_of_groups(before: float, after: float, at_most: int) -> None:
    waits = sorted(groups_until(before, after, off=0.15, seed=seed) for seed in range(9))
    assert waits[4] <= at_most, waits


@pytest.mark.parametrize("share", [0.25, 0.5, 0.7, 0.97])
def test_noise_is_not_a_change(share: float) -> None:
    num_short = 0
    for seed in range(4):
        random_numbers, window = random.Random(seed), ShareWindow(1024)
        for number in range(1000):
            window.add(float(random_numbers.random() < share))
            num_short += number > 400 and len(window) < 200
    assert num_short < 4 * 600 * 0.1, "a window without change stays long nine tenths of the time"


def test_lengths_that_double_are_noticed_and_heavy_tails_are_not() -> None:
    random_numbers, window = random.Random(0), AmountWindow(1024)
    for _ in range(1000):
        window.add(random_numbers.lognormvariate(8.0, 0.4))
    assert len(window) > 400
    for _ in range(32):
        window.add(random_numbers.lognormvariate(8.0 + 0.7, 0.4))
    assert len(window) <= 100


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=400), st.integers(16, 64))
def test_the_window_is_the_end_of_what_came_and_is_bounded(values: list[float], max_length: int) -> None:
    window = AmountWindow(max_length)
    assert window.mean is None
    for number, value in enumerate(values, start=1):
        window.add(value)
        end = values[number - len(window) : number]
        assert 1 <= len(window) <= max_length
        assert window.mean == pytest.approx(sum(end) / len(end), rel=1e-6, abs=1e-3)
