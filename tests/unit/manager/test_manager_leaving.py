"""When a gang that is called to training leaves rollout, and how long trainers wait for it."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlserve.manager.leaving import TrainersNow, leave_at_s, patience_s
from rlserve.manager.measurement.figures import Measurements, TrainRate

NOW = float("-inf")


def rate(types: tuple[str, ...], tokens_per_s: float, last_s: float = 0.0, **changes: float) -> TrainRate:
    """Steps of 4,000 tokens, and others in proportion to that."""
    values = {"token_s": 1.0 / tokens_per_s, "early_s": 0.0, **changes}
    return TrainRate(
        types=types, step_s=4000 / tokens_per_s, tokens_per_s=tokens_per_s, num_steps=8, last_s=last_s, **values
    )


def trainers(num: int = 4, *, step_begin_s: float | None = 100.0, waiting: bool = False) -> TrainersNow:
    """On a batch of 8,000 tokens, which takes 20 s as measured."""
    return TrainersNow(types=("H100",) * num, num_tokens=8000, step_begin_s=step_begin_s, waiting=waiting)


MEASURED = Measurements(train=(rate(("H100",) * 4, 400.0),), leave_s=2.0)


def test_it_leaves_so_that_it_is_ready_when_the_step_should_end_at_the_soonest() -> None:
    assert leave_at_s(trainers(), MEASURED) == 100.0 + 8000 / 400.0 - 2.0


def test_what_steps_have_beside_their_tokens_and_how_much_they_differ_is_reckoned_with() -> None:
    """10 s for 4,000 tokens, but only 1 s more for each 1,000; and one ended 3 s before that."""
    known = Measurements(train=(rate(("H100",) * 4, 400.0, token_s=0.001, early_s=3.0),), leave_s=2.0)
    assert leave_at_s(trainers(), known) == 100.0 + 10.0 + 4.0 - 3.0 - 2.0


def test_it_leaves_at_once_where_training_waits_for_a_batch_or_nothing_is_known() -> None:
    assert leave_at_s(trainers(step_begin_s=None, waiting=True), MEASURED) == NOW
    assert leave_at_s(trainers(), Measurements()) == NOW
    first = TrainersNow(types=("H100",), num_tokens=None, step_begin_s=None, waiting=False)
    assert leave_at_s(first, MEASURED) == NOW


def test_between_two_steps_it_goes_where_the_others_would_wait_for_it_and_else_with_the_next_step() -> None:
    between = trainers(step_begin_s=None)
    slow = Measurements(train=MEASURED.train, leave_s=6.0)
    assert leave_at_s(between, MEASURED) == NOW, "four that wait 2 s lose less than one that does nothing for 20 s"
    assert leave_at_s(between, slow) is None, "four that wait 6 s lose more"


def test_the_trainers_wait_as_long_as_that_costs_less_than_a_gang_without_work_for_a_step() -> None:
    assert patience_s(trainers(), MEASURED, left_s=2.0) == 5.0
    assert patience_s(trainers(), MEASURED, left_s=-1.0) == 5.0, "it is late already, and may come at any moment"
    assert patience_s(trainers(), MEASURED, left_s=5.1) == 0.0
    assert patience_s(trainers(), Measurements(), left_s=0.1) == 0.0


@pytest.mark.parametrize(
    ("rates", "step_s"),
    [
        ([rate(("H100", "H100"), 200.0)], 20.0),  # in proportion
        ([rate(("H100", "H100"), 200.0), rate(("H100",) * 5, 400.0)], 25.0),  # the most similar number
        ([rate(("H100",) * 3, 300.0, 5.0), rate(("H100",) * 5, 400.0, 9.0)], 25.0),  # the newer of two
        ([rate(("H100",) * 4, 800.0), rate(("H100",) * 3, 300.0)], 10.0),  # measured
    ],
)
def test_a_size_that_was_not_measured_is_forecast_from_the_most_similar_one(
    rates: list[TrainRate], step_s: float
) -> None:
    assert leave_at_s(trainers(), Measurements(train=tuple(rates), leave_s=0.0)) == pytest.approx(100.0 + step_s)


def test_the_order_of_the_types_does_not_matter() -> None:
    mixed = TrainersNow(types=("H200", "H100"), num_tokens=8000, step_begin_s=0.0, waiting=False)
    measured = Measurements(train=(rate(("H100", "H200"), 100.0),), leave_s=0.0)
    assert leave_at_s(mixed, measured) == 80.0


@given(st.integers(1, 64), st.floats(0.0, 100.0), st.floats(1.0, 1e4))
def test_what_all_trainers_wait_is_never_more_than_a_gang_would_lose(num: int, left_s: float, tokens_s: float) -> None:
    measured = Measurements(train=(rate(("H100",) * num, tokens_s),))
    waits_s = patience_s(trainers(num), measured, left_s=left_s)
    assert waits_s in (0.0, pytest.approx(8000 / tokens_s / num))
    assert not math.isinf(waits_s)
    assert num * waits_s <= 8000 / tokens_s * (1 + 1e-9)
