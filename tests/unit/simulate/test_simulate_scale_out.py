"""Simulated runs that grow: more is trained where rollout is what is short, and never for more than the budget."""

from __future__ import annotations

from dataclasses import replace

import pytest
from simulate_builders import PlainCosts, gangs, scenario

from rlserve.manager.config import ManagerConfig, QueueThresholdConfig, RateMatchingConfig, StaticConfig
from rlserve.manager.scale_out.base import NodeType, Terms
from rlserve.simulate.scenario import LossRates, Scenario
from rlserve.simulate.simulation import SimulatedRun, simulate
from rlserve.tracking.cost.prices import Prices

PRICES = Prices(currency="EUR", date="2026-11-01", per_hour={"even": 1.0, "more": 0.5})
(FIGURES,) = {gang.figures for gang in gangs(even=1)}
TERMS = Terms(
    types=(NodeType(name="more", num_gangs=2, num_slots=2, max_nodes=3, price_per_hour=1.0, figures=FIGURES),),
    grow_after_s=2.0,
    shrink_after_s=20.0,
    cooldown_s=10.0,
    node_timeout_s=60.0,
    retry_after_s=60.0,
)
POLICIES = (StaticConfig(), RateMatchingConfig(), QueueThresholdConfig(queue_high=3, queue_low=1))


def growing(terms: Terms = TERMS, *, base_s: float = 0.02, train_token_s: float = 0.0001) -> Scenario:
    """Four gangs, two of which train; a replica holds one group of the twelve that are live."""
    return scenario(
        costs=PlainCosts(base_s=base_s, train_token_s=train_token_s),
        max_staleness=2,
        max_num_sequences=2,
        scale_out=terms,
        prices=PRICES,
        losses=LossRates(machine_start_s=5.0),
    )


def both(manager: ManagerConfig, terms: Terms = TERMS) -> tuple[SimulatedRun, SimulatedRun]:
    """As it begins, and growing."""
    grows = growing(terms)
    return simulate(replace(grows, scale_out=None), manager, seed=1), simulate(grows, manager, seed=1)


@pytest.mark.parametrize("manager", POLICIES, ids=lambda manager: manager.policy)
def test_where_rollout_is_short_more_is_trained_with_nodes_that_were_asked_for(manager: ManagerConfig) -> None:
    fixed, grown = both(manager)
    assert fixed.mean_grown == 0.0
    assert grown.mean_grown > 2.0
    assert grown.num_trained_groups > 1.3 * fixed.num_trained_groups
    hours = grown.duration_s / 3600
    assert grown.spent.gpu_hours == pytest.approx((4 + grown.mean_grown) * hours), "a gang is a slot here"


@pytest.mark.parametrize("budget", [4.0, 5.0, 6.5])
def test_all_slots_together_never_cost_more_an_hour_than_the_budget(budget: float) -> None:
    _, grown = both(QueueThresholdConfig(queue_high=3, queue_low=1), replace(TERMS, money_per_hour=budget))
    assert grown.peak_per_hour is not None
    assert grown.peak_per_hour <= budget
    assert (grown.mean_grown > 0) is (budget >= 5.0), "a node costs 1, and the pool 4"


def test_where_training_is_short_nothing_is_asked_for() -> None:
    run = simulate(growing(base_s=0.0001, train_token_s=0.01), StaticConfig(), seed=1)
    assert run.mean_grown < 0.5


def test_equal_arguments_give_equal_runs() -> None:
    first, second = (simulate(growing(), RateMatchingConfig(), seed=3) for _ in range(2))
    assert replace(first, host_s=0.0) == replace(second, host_s=0.0)
