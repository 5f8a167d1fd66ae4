"""The bound on pieces a second."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from rlserve.engine.loop.piece_pace import PiecePace


def test_without_a_bound_they_are_always_due() -> None:
    now_s = 3.0
    pace = PiecePace(math.inf, clock=lambda: now_s)
    pace.told(10**9)
    assert pace.is_due


def test_the_next_are_due_when_those_before_have_had_their_time() -> None:
    now_s = 0.0
    pace = PiecePace(100.0, clock=lambda: now_s)
    assert pace.is_due
    pace.told(8)
    now_s = 0.079
    assert not pace.is_due
    pace.told(6)  # first tokens
    now_s = 0.081
    assert not pace.is_due
    now_s = 0.141
    assert pace.is_due


def test_few_streams_never_wait() -> None:
    now_s = 0.0
    pace = PiecePace(600.0, clock=lambda: now_s)
    pace.told(33)
    assert pace.is_due
    pace.told(34)
    assert not pace.is_due


def test_nobody_waits_longer_than_a_quarter_of_a_second() -> None:
    now_s = 0.0
    pace = PiecePace(100.0, clock=lambda: now_s)
    pace.told(10**6)
    now_s = 0.249
    assert not pace.is_due
    now_s = 0.25
    assert pace.is_due


@given(
    rate=st.floats(1.0, 1e4),
    num_more=st.integers(1, 300),
    steps=st.lists(st.floats(0.0, 0.5), max_size=60),
)
def test_over_any_time_no_more_are_told_of_many_streams_than_the_rate_allows(
    rate: float, num_more: int, steps: list[float]
) -> None:
    """But for the streams that are told after the longest wait."""
    num_streams = int(rate / 18) + num_more
    now_s, num_told = 0.0, 0
    pace = PiecePace(rate, clock=lambda: now_s)
    for step_s in steps:
        now_s += step_s
        if pace.is_due:
            pace.told(num_streams)
            num_told += num_streams
    highest = max(rate, num_streams / 0.25)
    assert num_told <= (highest * now_s + num_streams) * (1 + 1e-9)
