"""What is refused of ``scale_out``, and what it comes to."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from rlserve.config import load
from rlserve.config.growth import growth_terms
from rlserve.config.prices import check_hourly, check_prices
from rlserve.config.tree import RunConfig
from rlserve.errors import UserError
from rlserve.manager.scale_out.base import NodeType
from rlserve.tracking.cost.prices import Prices

POOL = ("launch=cluster", "pool.slots=[{type: H100, count: 4}, {type: H100-spot, count: 4}]")
PRICES = Prices(currency="EUR", date="2026-11-01", per_hour={"H100": 2.0, "H100-spot": 0.5, "L40S": 1.0})
FILE = "currency: EUR\ndate: 2026-11-01\nper_hour: {H100: {on_demand: 2.0, spot_factor: 0.25}}\n"


def config_with(*overrides: str, pool: Sequence[str] = POOL) -> RunConfig:
    return load("conf/rlhf.yaml", [*pool, *overrides]).config


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (("launch=local", "pool=auto", "scale_out.max_slots={cpu-b: 2}"), "needs a Ray cluster"),
        ((*POOL, "scale_out.max_slots={H100: 2}"), "at least the 4 slots of H100"),
        ((*POOL, "scale_out.max_slots={H100: 8}", "scale_out.money_per_hour=9"), "needs prices"),
        (
            (*POOL, "scale_out.max_slots={L40S: 4}", "rollout.engine.tensor_parallel_size=2"),
            "multiple of rollout.engine.tensor_parallel_size",
        ),
        ((*POOL, "scale_out.max_slots={L40S: 4}", "scale_out.slots_per_node={L40S: 8}"), "slots of a node"),
        ((*POOL, "scale_out.max_slots={L40S: 4}", "scale_out.min_slots={H100: 1}"), "must have the types"),
        ((*POOL, "algorithm=sft", "scale_out.max_slots={L40S: 4}"), "is for rollout"),
    ],
)
def test_what_cannot_be_is_refused_with_the_reason(overrides: Sequence[str], words: str) -> None:
    with pytest.raises(UserError, match=words):
        load("conf/rlhf.yaml", overrides)


def test_nodes_are_whole_and_those_of_the_pool_are_never_given_back() -> None:
    config = config_with(
        "scale_out.max_slots={H100-spot: 10, L40S: 9}",
        "scale_out.slots_per_node={H100-spot: 4, L40S: 2}",
        "scale_out.min_slots={L40S: 1}",
        "rollout.engine.tensor_parallel_size=2",
    )
    spot, other = growth_terms(config, PRICES).types
    assert isinstance(spot, NodeType)
    assert (spot.num_gangs, spot.min_nodes, spot.max_nodes, spot.price_per_hour) == (2, 1, 2, 2.0)
    assert (other.num_gangs, other.min_nodes, other.max_nodes, other.price_per_hour) == (1, 1, 4, 2.0)
    assert (spot.may_train, other.may_train) == (False, True)


def test_a_budget_that_the_pool_passes_or_that_cannot_be_kept_is_refused(tmp_path: Path) -> None:
    prices = tmp_path / "prices.yaml"
    prices.write_text(FILE)
    asks = (f"cost.prices={prices}", "scale_out.max_slots={H100-spot: 8}")
    assert check_prices(config_with(*asks, "scale_out.money_per_hour=10")) is not None
    with pytest.raises(UserError, match="must be at least 10, which the slots cost"):
        check_prices(config_with(*asks, "scale_out.money_per_hour=9.5"))
    unpriced = config_with(asks[0], "scale_out.max_slots={L40S: 8}", "scale_out.money_per_hour=10")
    with pytest.raises(UserError, match="needs a price for L40S"):
        check_prices(unpriced)
    check_hourly(unpriced, PRICES, {"H100": 4})
