"""Whether a change of the cost of a token can be told from chance."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest

from rlserve.tracking.cost.accounts import to_ns
from rlserve.tracking.cost.comparison import MIN_NUM_STEPS, compare_costs
from rlserve.tracking.cost.prices import Prices
from rlserve.tracking.cost.statement import StepCost

HOUR_NS = to_ns(3600.0)


def steps(
    hours: Sequence[float], *, num_tokens: int = 1000, slot_type: str = "H100", start: float = 5.0
) -> list[StepCost]:
    """A run whose steps take so many GPU-hours each, after a first one that takes long."""
    total, found = start, []
    for number, step_hours in enumerate([0.0, *hours], start=1):
        total += step_hours
        owned_ns = {slot_type: round(total * HOUR_NS)}
        found.append(StepCost(step=number, owned_ns=owned_ns, num_trained_tokens=num_tokens))
    return found


def noisy(seed: int, mean: float, number: int = 60, spread: float = 0.2) -> list[float]:
    """Neighbours are alike."""
    chance, drift, found = random.Random(seed), 0.0, []
    for _ in range(number):
        drift = 0.5 * drift + chance.gauss(0, spread * mean)
        found.append(max(mean + drift, 0.1 * mean))
    return found


def test_equal_steps_have_no_uncertainty_and_the_start_counts_for_nothing() -> None:
    found = compare_costs(steps([2.0] * 20, start=1.0), steps([1.5] * 20, start=99.0))
    assert found is not None
    assert (found.before.value, found.after.value) == pytest.approx((2000.0, 1500.0))
    assert (found.change.low, found.change.high) == pytest.approx((-0.25, -0.25))
    assert found.is_distinguishable
    assert found.saved == pytest.approx(20 * 0.5)


def test_a_large_change_is_told_from_chance_and_a_small_one_is_not() -> None:
    large = compare_costs(steps(noisy(1, 2.0)), steps(noisy(2, 1.0)))
    small = compare_costs(steps(noisy(5, 2.0)), steps(noisy(6, 2.02)))
    assert large is not None
    assert small is not None
    assert large.is_distinguishable
    assert large.change.low < large.change.value < large.change.high < 0
    assert not small.is_distinguishable


def test_where_nothing_has_changed_that_is_said_nearly_always() -> None:
    found = [compare_costs(steps(noisy(seed, 1.0)), steps(noisy(seed + 1000, 1.0))) for seed in range(100)]
    assert sum(each is not None and each.is_distinguishable for each in found) <= 18


def test_money_weighs_types_by_their_price() -> None:
    prices = Prices(currency="EUR", date="2026-11-01", per_hour={"H100": 2.0, "H200": 3.0})
    found = compare_costs(steps([1.0] * 9), steps([0.8] * 9, slot_type="H200"), prices)
    assert found is not None
    assert found.change.value == pytest.approx(0.2), "fewer hours, and dearer"
    assert compare_costs(steps([1.0] * 9), steps([0.8] * 9, slot_type="L4"), prices) is None


@pytest.mark.parametrize(("first", "second"), [(0, 20), (20, MIN_NUM_STEPS - 1)])
def test_a_few_steps_say_nothing(first: int, second: int) -> None:
    assert compare_costs(steps([1.0] * first), steps([1.0] * second)) is None
    assert compare_costs(steps([1.0] * MIN_NUM_STEPS), steps([1.0] * MIN_NUM_STEPS)) is not None
