"""The fluid control: with a split on each side of the best division, the stock says which one it should be."""

from __future__ import annotations

import numpy as np
import pytest

from rlserve.manager.prediction.fluid import Flows, at_stock, values

STOCKS = np.linspace(0.0, 200.0, 17)


def two_splits(generated: tuple[float, float], trained: tuple[float, float]) -> Flows:
    """The first rolls out less and trains more."""
    return Flows(
        stocks=STOCKS,
        generated=np.array(generated)[:, None] * np.ones_like(STOCKS),
        trained=np.array(trained),
        balanced=np.minimum(generated, trained),
    )


def control(flows: Flows, cost: float, stock: float, now: int) -> int:
    """The split that is best with so much in stock, from split ``now``."""
    costs = cost * (1.0 - np.eye(2))
    value = at_stock(flows, values(flows, costs=costs, stage_s=75.0, horizon_s=600.0), stock)
    return int(np.argmax(value - costs[now]))


FLOWS = two_splits((1.05, 1.2), (1.3, 1.1))


def test_a_full_stock_goes_to_training_and_an_empty_one_to_rollout() -> None:
    assert control(FLOWS, cost=3.0, stock=150.0, now=1) == 0
    assert control(FLOWS, cost=3.0, stock=0.0, now=0) == 1


def test_between_them_the_split_stays_what_it_is() -> None:
    middle = [stock for stock in STOCKS if control(FLOWS, 3.0, stock, 0) == 0 and control(FLOWS, 3.0, stock, 1) == 1]
    assert 1 <= len(middle) <= 8


def test_dear_moves_are_not_made() -> None:
    assert [control(FLOWS, 500.0, stock, now) for stock in (0.0, 200.0) for now in (0, 1)] == [0, 1, 0, 1]


def test_a_split_that_is_better_with_any_stock_is_taken_with_any() -> None:
    flows = two_splits((0.5, 1.2), (1.1, 1.1))
    assert [control(flows, 3.0, stock, 0) for stock in (0.0, 30.0)] == [1, 1]
    assert [control(flows, 3.0, stock, 1) for stock in STOCKS] == [1] * len(STOCKS)


def test_the_value_of_one_split_is_what_it_trains_discounted() -> None:
    flows = two_splits((1.0, 1.0), (2.0, 2.0))
    value = values(flows, costs=np.zeros((2, 2)), stage_s=10.0, horizon_s=600.0)
    rate = (1.0 - np.exp(-10.0 / 600.0)) / 10.0
    assert np.diff(value, axis=0) == pytest.approx(0.0, abs=1e-9)
    assert value[0, 8] - value[0, 0] == pytest.approx(100.0, rel=0.12), "what is in stock is trained soon"
    assert value[0, 0] * rate == pytest.approx(1.0, rel=0.02), "groups a second"
