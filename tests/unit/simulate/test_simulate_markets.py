"""Spot machines in a simulated run: traces, markets by chance, and gangs that come and go with them."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from simulate_builders import PlainCosts, gangs, scenario

from rlserve.errors import UserError
from rlserve.manager.config import ManagerConfig, QueueThresholdConfig, RateMatchingConfig, StaticConfig
from rlserve.manager.gang_table import GangState
from rlserve.simulate.markets.base import Availability, Zone, spread
from rlserve.simulate.markets.generated import MarketFigures, generate_availability
from rlserve.simulate.markets.traces import read_availability
from rlserve.simulate.scenario import LossRates, Scenario
from rlserve.simulate.simulation import simulate

STATIC = StaticConfig(interval_s=1.0)
POLICIES: tuple[ManagerConfig, ...] = (
    STATIC,
    QueueThresholdConfig(interval_s=1.0, queue_high=6, queue_low=1, cooldown_s=2.0, min_rollout_share=0.0),
    RateMatchingConfig(interval_s=1.0, min_rollout_share=0.0),
)
UP_AND_DOWN = Availability(times_s=(0.0, 40.0, 70.0), shares=(1.0, 0.0, 1.0), duration_s=1000.0)


def with_spot(availability: Availability, *, grace_s: float = 30.0, duration_s: float = 120.0) -> Scenario:
    """Four gangs on demand and four on spot machines, all from one place."""
    pool = tuple(
        replace(gang, type="even-spot" if number >= 4 else "even", may_train=number < 4)
        for number, gang in enumerate(gangs(even=8))
    )
    zone = Zone(name="zone", gang_ids=tuple(gang.id for gang in pool[4:]), availability=availability)
    return scenario(
        gangs=pool,
        zones=(zone,),
        costs=PlainCosts(train_token_s=0.005, move_s=0.1, pause_s=0.1, transfer_s=0.1),
        losses=LossRates(grace_s=grace_s, machine_start_s=5.0),
        num_initial_rollout=5,
        duration_s=duration_s,
    )


def test_a_course_waits_for_each_change_and_begins_anew() -> None:
    two = Availability(times_s=(0.0, 10.0), shares=(1.0, 0.5), duration_s=30.0)
    assert list(islice(two.course(0.0), 4)) == [(0.0, 1.0), (10.0, 0.5), (20.0, 1.0), (10.0, 0.5)]
    assert list(islice(two.course(42.0), 3)) == [(0.0, 0.5), (18.0, 1.0), (10.0, 0.5)]
    assert two.mean_share == pytest.approx((10 + 0.5 * 20) / 30)


def test_traces_as_they_are_published(tmp_path: Path) -> None:
    path = tmp_path / "zone.json"
    path.write_text(json.dumps({"metadata": {"gap_seconds": 300}, "data": [0, 16, 16, 8, 16]}))
    assert read_availability(path) == Availability(
        times_s=(0.0, 300.0, 900.0, 1200.0), shares=(0.0, 1.0, 0.5, 1.0), duration_s=1500.0
    )
    table = tmp_path / "zone.csv"
    table.write_text("100,4\n160,4\n400,1\n1000,0\n")
    assert read_availability(table) == Availability(times_s=(0.0, 300.0), shares=(1.0, 0.25), duration_s=900.0)


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("a.json", "{}", "metadata.gap_seconds"),
        ("a.json", '{"metadata": {"gap_seconds": 0}, "data": [1]}', "above 0"),
        ("a.json", '{"metadata": {"gap_seconds": 5}, "data": [0, 0]}', "never has a machine"),
        ("a.csv", "0,1\n", "two lines or more"),
        ("a.csv", "0,1\n5,2\n4,1\n", "times that ascend"),
        ("a.csv", "time,machines\n0,1\n", "SECONDS,MACHINES"),
        ("none.json", None, "cannot be read"),
    ],
)
def test_traces_of_another_form_are_refused(tmp_path: Path, name: str, content: str | None, complaint: str) -> None:
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=complaint):
        read_availability(tmp_path / name)


def test_a_market_by_chance_is_rich_for_its_share_of_the_time() -> None:
    figures = MarketFigures(rich_s=300.0, poor_s=100.0, poor_share=0.0)
    made = generate_availability(figures, duration_s=400_000.0, seed="a")
    assert made.mean_share == pytest.approx(0.75, abs=0.05)
    assert made == generate_availability(figures, duration_s=400_000.0, seed="a")
    assert made != generate_availability(figures, duration_s=400_000.0, seed="b")


def test_gangs_are_spread_evenly_over_places() -> None:
    zones = spread(["a", "b", "c", "d", "e"], {"x": UP_AND_DOWN, "y": UP_AND_DOWN})
    assert [zone.gang_ids for zone in zones] == [("a", "c", "e"), ("b", "d")]


def test_machines_leave_with_a_notice_and_others_come_when_they_can_be_had() -> None:
    run = simulate(with_spot(UP_AND_DOWN), STATIC, seed=0)
    assert (run.num_notices, run.num_late) == (4, 0)
    gone = [change for change in run.history if change.after is GangState.GONE]
    assert len(gone) == 4
    assert all(40.0 <= change.time_s <= 70.0 for change in gone)
    again = [change for change in run.history if change.after is GangState.ROLLOUT and "+1" in change.gang_id]
    assert len(again) == 4
    assert all(change.time_s >= 75.0 for change in again), "after its machine has started"


def test_a_machine_is_paid_from_its_start_until_it_is_gone() -> None:
    run = simulate(with_spot(UP_AND_DOWN), STATIC, seed=0)
    gone_s = [change.time_s for change in run.history if change.after is GangState.GONE]
    expected_s = sum(gone_s) + 4 * (120.0 - 70.0)
    assert 3600 * run.spent.hours_of(slot_type="even-spot") == pytest.approx(expected_s)
    assert 3600 * run.spent.hours_of(slot_type="even") == pytest.approx(4 * 120.0)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 1000), st.sampled_from(POLICIES), st.floats(0.0, 4.0))
def test_whatever_the_market_does_no_spot_machine_trains_and_nothing_is_lost_from_the_books(
    seed: int, manager: ManagerConfig, grace_s: float
) -> None:
    market = generate_availability(MarketFigures(rich_s=20.0, poor_s=10.0), duration_s=120.0, seed=str(seed))
    run = simulate(with_spot(market, grace_s=grace_s), manager, seed=seed)
    on_spot = {f"even/{number}" for number in range(4, 8)}
    trained = {change.gang_id for change in run.history if change.after is GangState.TRAIN}
    assert not {gang_id for gang_id in trained if gang_id.partition("+")[0] in on_spot}
    assert sum(run.staleness.values()) == 4 * run.num_steps
    assert run.num_steps > 3
