"""Which pool to rent for a sum an hour."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from simulate_builders import PlainCosts, scenario

from rlserve.errors import UserError
from rlserve.manager.config import StaticConfig
from rlserve.roofline.accelerators import is_spot
from rlserve.simulate.purchase import affordable, find_offers, make_gangs, try_offer
from rlserve.tracking.cost.prices import Prices

MONEY = st.floats(0.1, 9.0)


@given(st.dictionaries(st.sampled_from(["a", "b", "a-spot", "b-spot"]), MONEY, min_size=1), st.floats(0.0, 40.0))
def test_a_pool_costs_no_more_than_there_is_and_wastes_less_than_one_gang(money: dict[str, float], most: float) -> None:
    for counts in affordable(money, most):
        spent = sum(count * money[name] for name, count in counts.items())
        assert spent <= most + 1e-6
        assert sum(counts.values()) >= 2
        assert not is_spot(next(iter(counts)))
        if len(counts) == 2:
            assert most - spent < money[list(counts)[1]] + 1e-6


def test_spot_machines_roll_out_and_the_first_type_trains() -> None:
    gangs = make_gangs({"H100": 2, "H100-spot": 1}, 4)
    assert [(gang.id, gang.num_slots, gang.may_train) for gang in gangs] == [
        ("H100/0", 4, True),
        ("H100/1", 4, True),
        ("H100-spot/0", 4, False),
    ]


def offers_of(per_hour: dict[str, float], **changes: object) -> list[tuple[str, float]]:
    """Names of pools with what they cost an hour, for 12 EUR."""
    plain = scenario(costs=PlainCosts(train_token_s=0.001), max_num_sequences=8)
    prices = Prices(currency="EUR", date="2026-11-01", per_hour=per_hour)
    found = find_offers(plain, prices, money_per_hour=12.0, **changes)  # type: ignore[arg-type]
    return [(offer.name, offer.money_per_hour) for offer in found]


def test_a_type_that_is_cheaper_for_the_same_work_comes_first() -> None:
    assert offers_of({"even": 3.0, "H100": 2.0})[0][0].endswith("H100")
    assert offers_of({"even": 2.0, "H100": 3.0})[0][0].endswith("even")


def test_rollout_goes_to_spot_machines_where_they_are_cheaper() -> None:
    (name, money), *_ = offers_of({"even": 3.0, "even-spot": 1.0})
    assert name.endswith("even-spot")
    assert money <= 12.0
    assert [found for found, _ in offers_of({"even": 3.0, "even-spot": 1.0}, types=["even"])] == ["4 even"]


@pytest.mark.parametrize(
    ("per_hour", "types", "complaint"),
    [
        ({"even": 7.0}, [], r"12 EUR an hour do not pay for two gangs of 1 of even"),
        ({"even-spot": 1.0}, [], r"one of which is not on a spot machine"),
        ({"even": 1.0}, ["H200"], r"H200 has no price above 0 in cost.prices, which names even"),
    ],
)
def test_what_cannot_be_rented_is_said(per_hour: dict[str, float], types: list[str], complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        offers_of(per_hour, types=types)


def test_an_offer_is_tried_by_a_run_on_it() -> None:
    plain = scenario(costs=PlainCosts(train_token_s=0.01), duration_s=400.0)
    prices = Prices(currency="EUR", date="2026-11-01", per_hour={"even": 2.0, "even-spot": 1.0})
    offer = find_offers(plain, prices, money_per_hour=6.0)[0]
    tried = try_offer(plain, offer, StaticConfig(), prices, seed=0)
    hours = 400.0 / 3600
    trained = tried.tokens_per_s * 400.0
    assert tried.cost_per_million == pytest.approx(offer.money_per_hour * hours / trained * 1e6)
