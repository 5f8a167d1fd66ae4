"""What the time of a simulated run goes into, against what the simulation counts by itself."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from simulate_builders import PlainCosts, equal_work, gangs, scenario

from rlserve.manager.config import QueueThresholdConfig, StaticConfig
from rlserve.manager.gang_table import GangState
from rlserve.simulate.scenario import LossRates
from rlserve.simulate.simulation import SimulatedRun, simulate
from rlserve.tracking.cost.uses import Use

EAGER = QueueThresholdConfig(interval_s=1.0, cooldown_s=3.0, queue_high=4, queue_low=2)
MOVING = PlainCosts(base_s=0.05, train_token_s=0.003, move_s=1.5, pause_s=0.5, transfer_s=0.25)


def seconds(run: SimulatedRun, *uses: Use, role: str | None = None) -> float:
    return 3600 * run.spent.hours_of(*uses, role=role)


def owned_s(run: SimulatedRun) -> float:
    """From the history of each gang alone."""
    begun: dict[str, float] = {}
    total_s = 0.0
    for change in run.history:
        begun.setdefault(change.gang_id, change.time_s)
        if change.after is GangState.GONE:
            total_s += change.time_s - begun[change.gang_id]
            begun[change.gang_id] = run.duration_s
    return total_s + sum(run.duration_s - since_s for since_s in begun.values())


def test_a_run_in_which_nothing_moves_trains_generates_and_waits() -> None:
    run = simulate(scenario(costs=PlainCosts(base_s=0.05, train_token_s=0.003)), StaticConfig(), seed=0)
    run.spent.check_integrity()
    assert seconds(run) == pytest.approx(owned_s(run)) == pytest.approx(run.duration_s * 4)
    computed_s = run.duration_s * 4 * (1 - run.bubble_share)
    busy = (Use.TRAINING, Use.ROLLOUT, Use.IN_FLIGHT)
    assert seconds(run, *busy) == pytest.approx(computed_s, rel=0.02)
    assert seconds(run, Use.LOST, Use.DROPPED, Use.SWITCHING, Use.STARTUP) == 0.0
    assert seconds(run, Use.BUBBLE) > 0.0


def test_dropped_tokens_take_their_part_of_the_time() -> None:
    work = equal_work(drop_every=2)
    run = simulate(scenario(costs=PlainCosts(base_s=0.05), max_staleness=3, workload=work), StaticConfig(), seed=0)
    assert seconds(run, Use.DROPPED) == pytest.approx(seconds(run, Use.ROLLOUT), rel=0.1)


@given(st.integers(0, 10**6))
@settings(max_examples=10, deadline=None)
def test_all_time_is_accounted_for_through_moves_losses_and_nodes_that_leave(seed: int) -> None:
    losses = LossRates(failures_per_hour=60.0, notices_per_hour=30.0, restart_s=5.0, grace_s=10.0, away_s=30.0)
    run = simulate(scenario(gangs=gangs(even=6), costs=MOVING, max_staleness=3, losses=losses), EAGER, seed=seed)
    run.spent.check_integrity()
    assert seconds(run) == pytest.approx(owned_s(run))
    assert seconds(run, Use.TRAINING) > 0.0
    if run.num_failures:
        assert seconds(run, Use.LOST) > 0.0
    if run.moves:
        assert seconds(run, Use.SWITCHING) > 0.0
