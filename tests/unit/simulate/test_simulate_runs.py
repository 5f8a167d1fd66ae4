"""Whole simulated runs against what follows from their scenario."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from simulate_builders import PlainCosts, equal_work, gangs, scenario

from rlserve.manager.config import ManagerConfig, QueueThresholdConfig, StaticConfig
from rlserve.manager.gang_table import GangState
from rlserve.manager.measurement.readings import Reading, StepDone
from rlserve.manager.roles import Role
from rlserve.rollout.workload.courses import Drift, Steady
from rlserve.rollout.workload.lengths import LogNormalLengths
from rlserve.rollout.workload.workload import Workload
from rlserve.simulate.costs.base import Costs
from rlserve.simulate.journal import Journal
from rlserve.simulate.oracle import fluid_groups_per_s, saturated_rates
from rlserve.simulate.scenario import LossRates, Overheads
from rlserve.simulate.simulation import simulate

STATIC = StaticConfig()
EAGER = QueueThresholdConfig(interval_s=1.0, cooldown_s=3.0, queue_high=4, queue_low=2)


def test_where_training_is_slow_it_never_waits_and_sets_the_rate() -> None:
    slow = scenario(costs=PlainCosts(base_s=0.001, train_token_s=0.02))
    run = simulate(slow, STATIC, seed=0)
    step_s = 0.02 * 4 * 2 * 110 / 2  # tokens of a batch, on two trainers
    first_batch_s = 100 * 0.001
    assert run.num_trained_groups == pytest.approx(4 * (slow.duration_s - first_batch_s) / step_s, rel=1e-3)
    assert run.wait_share < 0.01


def test_where_generation_is_slow_replicas_are_always_busy_and_set_the_rate() -> None:
    slow = scenario(costs=PlainCosts(base_s=0.05, train_token_s=1e-6), max_staleness=3, num_initial_rollout=3)
    run = simulate(slow, STATIC, seed=0)
    groups_per_s = 3 * 4 / (100 * 0.05)  # on each, four groups at once, which end together
    assert run.groups_per_s == pytest.approx(groups_per_s, rel=0.03)
    assert run.num_generated_tokens == pytest.approx(slow.duration_s / 0.05 * 8 * 3, rel=0.02)


def test_dropped_groups_cost_generation_and_are_not_trained_on() -> None:
    costs = PlainCosts(base_s=0.05, train_token_s=1e-6)
    kept, dropped = (
        simulate(scenario(costs=costs, max_staleness=3, workload=equal_work(drop_every=each)), STATIC, seed=0)
        for each in (0, 2)
    )
    assert dropped.num_trained_groups == pytest.approx(kept.num_trained_groups / 2, rel=0.05)
    assert dropped.num_generated_tokens == pytest.approx(kept.num_generated_tokens, rel=0.02)


def test_greedy_answers_are_generated_and_not_trained_on() -> None:
    costs = PlainCosts(base_s=0.001, train_token_s=0.02)
    run = simulate(scenario(costs=costs, num_greedy=1), STATIC, seed=0)
    without = simulate(scenario(costs=costs), STATIC, seed=0)
    assert run.num_trained_groups == pytest.approx(without.num_trained_groups, rel=0.01), "training sets the rate"
    assert run.num_generated_tokens == pytest.approx(1.5 * without.num_generated_tokens, rel=0.05)
    slow = scenario(costs=PlainCosts(base_s=0.05, train_token_s=1e-6), num_initial_rollout=3, num_greedy=2)
    run, groups_per_s = simulate(slow, STATIC, seed=0), 3 * 2 / (100 * 0.05)  # two groups of four answers on each
    assert run.groups_per_s == pytest.approx(groups_per_s, rel=0.05)
    assert fluid_groups_per_s(slow, saturated_rates(slow)) >= run.groups_per_s


def test_no_token_is_older_than_the_bound_and_zero_means_zero() -> None:
    for bound in (0, 1, 3):
        run = simulate(scenario(max_staleness=bound, costs=PlainCosts(transfer_s=0.4)), STATIC, seed=0)
        assert run.staleness
        assert max(run.staleness) <= bound


def test_a_long_queue_takes_trainers_one_at_a_time_and_every_phase_of_a_move_takes_its_time() -> None:
    costs = PlainCosts(base_s=0.2, train_token_s=1e-5, move_s=1.5, pause_s=0.5, transfer_s=0.25)
    run = simulate(scenario(gangs=gangs(even=5), costs=costs, max_staleness=5), EAGER, seed=0)
    first = run.moves[0]
    assert first.to is Role.ROLLOUT
    assert first.end_s - first.begin_s >= 0.5 + 1.5 + 0.25
    for before, after in zip(run.moves, run.moves[1:], strict=False):
        assert after.begin_s >= before.end_s + EAGER.cooldown_s
    states = [change.after for change in run.history if change.gang_id == first.gang_id]
    moved = [GangState.LEAVING_TRAIN, GangState.IDLE, GangState.JOINING_ROLLOUT, GangState.ROLLOUT]
    assert states[states.index(GangState.LEAVING_TRAIN) :][:4] == moved


def test_a_gang_generates_until_the_step_is_about_to_end_and_joins_then() -> None:
    """The first step of a run is not known beforehand; and no size but that of the start has been measured."""
    costs = PlainCosts(base_s=0.01, train_token_s=0.05, move_s=1.5, pause_s=0.5)
    slow = scenario(gangs=gangs(even=5), costs=costs, max_staleness=5, num_initial_rollout=4, duration_s=400.0)
    run = simulate(slow, QueueThresholdConfig(interval_s=1.0, cooldown_s=60.0, queue_high=100, queue_low=99), seed=0)
    assert len(run.moves) >= 3
    assert {move.to for move in run.moves} == {Role.TRAIN}
    for move in run.moves[1:]:
        entered = {change.after: change.time_s for change in run.history if change.gang_id == move.gang_id}
        assert entered[GangState.LEAVING_ROLLOUT] - entered[GangState.CALLED_TO_TRAIN] > 2.0
        assert move.begin_s == entered[GangState.LEAVING_ROLLOUT]
        assert move.end_s - move.begin_s == pytest.approx(1.5 + 0.5, abs=0.1)


def test_a_step_is_put_down_to_those_who_made_it_whoever_has_joined_or_left_after_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    steps: list[StepDone] = []
    note = Journal.note

    def noted(journal: Journal, reading: Reading) -> None:
        steps.extend([reading] if isinstance(reading, StepDone) else [])
        note(journal, reading)

    monkeypatch.setattr(Journal, "note", noted)
    costs = PlainCosts(base_s=0.2, train_token_s=0.001, move_s=0.5, pause_s=0.5)
    run = simulate(scenario(gangs=gangs(even=5), costs=costs, max_staleness=5), EAGER, seed=0)
    assert len(run.moves) >= 2
    assert len({step.types for step in steps}) >= 2
    assert all(step.work_s == pytest.approx(0.001 * step.num_tokens / len(step.types)) for step in steps)


def small_workload(sigma: float, kept: float) -> Workload:
    return Workload(lengths=LogNormalLengths(median_tokens=Steady(60), sigma=sigma), kept=Steady(kept))


@settings(max_examples=25, deadline=None)
@given(
    st.integers(0, 5),
    st.floats(0.3, 1.0),
    st.integers(0, 2),
    st.sampled_from((10**12, 1500)),
    st.integers(1, 4),
    st.floats(1e-4, 5e-3),
)
def test_every_admitted_group_is_in_one_place_or_ended_whatever_moves(
    seed: int, kept: float, staleness: int, cache_tokens: int, num_rollout: int, train_token_s: float
) -> None:
    """``simulate`` itself checks ledger, buffer, dispatcher and gang table at its end."""
    costs = PlainCosts(
        sample_s=0.002, train_token_s=train_token_s, cache_tokens=cache_tokens, move_s=0.3, pause_s=0.2, transfer_s=0.1
    )
    run = simulate(
        scenario(
            gangs=gangs(even=3, fast=2),
            workload=small_workload(0.8, kept),
            max_tokens=400,
            costs=costs,
            max_staleness=staleness,
            num_initial_rollout=num_rollout,
            duration_s=60.0,
        ),
        replace(EAGER, cooldown_s=0.0),
        seed=seed,
    )
    assert all(age <= staleness for age in run.staleness)
    assert sum(run.staleness.values()) == 4 * run.num_steps
    assert 0 <= run.bubble_share <= 1


def test_a_seed_gives_the_same_run_and_another_one_another() -> None:
    wanted = scenario(workload=small_workload(0.8, 0.6), max_tokens=400)
    first, again, other = (replace(simulate(wanted, EAGER, seed=seed), host_s=0.0) for seed in (3, 3, 4))
    assert first == again
    assert first != other


@pytest.mark.parametrize(("drop_every", "most"), [(0, 1.0), (3, 1.15)])
def test_a_run_that_is_counted_in_steps_ends_with_the_last_and_admits_little_more_than_they_take(
    drop_every: int, most: float
) -> None:
    counted = scenario(workload=equal_work(drop_every=drop_every), num_steps=7, max_staleness=3, duration_s=1e6)
    run = simulate(counted, STATIC, seed=0)
    assert run.num_steps == len(run.step_ends_s) == 7
    assert run.duration_s == run.step_ends_s[-1]
    assert run.num_trained_groups == 7 * 4
    num_groups = 7 * 4 * (drop_every / (drop_every - 1) if drop_every else 1.0)
    assert num_groups <= run.num_generated_tokens / (100 * 2) <= most * num_groups


def test_calls_to_workers_take_their_time() -> None:
    slow = scenario(costs=PlainCosts(base_s=0.001, train_token_s=0.02))
    quick, called = (
        simulate(replace(slow, overheads=Overheads(step_s=step_s), num_steps=20), STATIC, seed=0)
        for step_s in (0.0, 0.5)
    )
    assert called.duration_s - quick.duration_s == pytest.approx(20 * 0.5)


def test_a_version_that_is_long_on_its_way_holds_up_groups_that_need_it() -> None:
    strict = scenario(max_staleness=0, num_steps=10)
    quick, late = (
        simulate(replace(strict, overheads=Overheads(sync_s=sync_s)), STATIC, seed=0) for sync_s in (0.0, 0.5)
    )
    assert late.duration_s - quick.duration_s == pytest.approx(9 * 0.5, rel=0.5)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 1000), st.sampled_from((STATIC, EAGER)), st.floats(0.0, 4.0))
def test_whatever_is_lost_every_group_is_in_one_place_or_ended(
    seed: int, manager: ManagerConfig, grace_s: float
) -> None:
    losses = LossRates(failures_per_hour=500, restart_s=3.0, notices_per_hour=500, grace_s=grace_s, away_s=5.0)
    costs = PlainCosts(train_token_s=0.005, move_s=0.3, pause_s=0.2, transfer_s=0.1)
    pool = scenario(gangs=gangs(even=4, fast=2), costs=costs, losses=losses, max_staleness=2, duration_s=120.0)
    run = simulate(pool, manager, seed=seed)
    assert run.num_failures + run.num_notices > 5
    assert run.num_steps > 3
    assert sum(run.staleness.values()) == 4 * run.num_steps
    assert {change.after for change in run.history} >= {GangState.DEAD, GangState.TRAIN, GangState.ROLLOUT}


def test_a_lost_trainer_costs_its_step_and_comes_back() -> None:
    losses = LossRates(failures_per_hour=200.0, restart_s=5.0)
    costs = PlainCosts(base_s=0.001, train_token_s=0.02, pause_s=1.0)
    quiet, lossy = (
        simulate(scenario(costs=costs, num_steps=30, losses=rates, duration_s=1e5), STATIC, seed=1)
        for rates in (LossRates(), losses)
    )
    assert lossy.num_steps == quiet.num_steps == 30
    assert lossy.num_failures > 0
    assert lossy.duration_s > quiet.duration_s
    again = [change for change in lossy.history if change.reason == "replaces a lost worker"]
    assert {change.after for change in again} >= {GangState.TRAIN, GangState.ROLLOUT}


def test_a_node_that_leaves_is_replaced_by_another_gang() -> None:
    losses = LossRates(notices_per_hour=120.0, grace_s=30.0, away_s=10.0)
    run = simulate(scenario(losses=losses, duration_s=400.0), STATIC, seed=0)
    assert run.num_notices > 3
    gone = {change.gang_id for change in run.history if change.after is GangState.GONE}
    back = {change.gang_id for change in run.history if change.after in (GangState.TRAIN, GangState.ROLLOUT)}
    assert gone
    assert any("+1" in gang_id for gang_id in back)


def test_tools_hold_groups_up_before_they_are_scored() -> None:
    waits = replace(equal_work(), tool_share=1.0, tool_wait_s=30.0, tool_sigma=0.0)
    plain, waiting = (simulate(scenario(workload=work, num_steps=1), STATIC, seed=0) for work in (equal_work(), waits))
    assert waiting.duration_s - plain.duration_s == pytest.approx(30.0)


def test_no_policy_beats_the_oracle_and_an_even_split_of_even_work_nearly_reaches_it() -> None:
    """Two replicas generate as fast as two trainers train."""
    costs = PlainCosts(base_s=0.05, train_token_s=0.05 / 8 * 100 / 110)
    even = scenario(costs=costs, max_staleness=4, duration_s=600.0)
    oracle = fluid_groups_per_s(even, saturated_rates(even)) * even.duration_s
    assert oracle == pytest.approx(2 * 4 / (100 * 0.05) * even.duration_s, rel=0.01)
    reached = {num: simulate(replace(even, num_initial_rollout=num), STATIC, seed=0) for num in (1, 2, 3)}
    shares = {num: run.num_trained_groups / oracle for num, run in reached.items()}
    assert 0.95 < shares[2] <= 1.0
    assert shares[1] == pytest.approx(0.5, abs=0.03)
    assert shares[3] == pytest.approx(0.5, abs=0.03)


def test_the_oracle_follows_a_drift() -> None:
    def oracle(kept: Steady | Drift) -> float:
        drifting = scenario(workload=replace(small_workload(0.0, 1.0), kept=kept))
        return fluid_groups_per_s(drifting, saturated_rates(drifting))

    assert oracle(Steady(0.4)) < oracle(Drift(0.4, 1.0)) < oracle(Steady(1.0))
    assert oracle(Drift(0.4, 1.0)) == pytest.approx(oracle(Drift(1.0, 0.4)))


def test_the_plain_costs_of_these_tests_keep_the_contract() -> None:
    costs: Costs = PlainCosts()
    assert costs.decode_step_s("fast", 1, 0) < costs.decode_step_s("even", 1, 0)
