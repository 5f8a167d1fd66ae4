"""Rate matching: finds the best split, pays for its moves, and leaves well alone."""

from __future__ import annotations

import random
import subprocess
import sys
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from manager_builders import make_gang, make_observation, make_pool
from rate_world import World, gangs_of, play

from rlserve.manager.config import RateMatchingConfig
from rlserve.manager.policies.base import Plan
from rlserve.manager.policies.factory import create_policy
from rlserve.manager.policies.planner import TypeRates, fluid_optimum
from rlserve.manager.policies.rate_matching import RateMatchingPolicy
from rlserve.manager.roles import Role


def decide(world: World, **changes: float) -> Plan:
    """The first plan."""
    policy = RateMatchingPolicy(replace(RateMatchingConfig(), **changes))
    return policy.decide(world.observe(), policy.initial_state())[0]


def best_rate(world: World) -> float:
    """Of all splits."""
    return max(world.rate(len(world.gangs) - n, n) for n in range(1, len(world.gangs)))


@pytest.mark.parametrize("kept_share", [0.25, 0.4, 0.7, 1.0])
@pytest.mark.parametrize("num_rollout", [1, 6, 11])
def test_the_best_split_is_reached_from_anywhere_and_kept(kept_share: float, num_rollout: int) -> None:
    world = World(gangs_of(12 - num_rollout, num_rollout), kept_share=kept_share, num_observed=4000)
    play(world, 600.0)
    assert world.rate(*world.counts()) >= 0.98 * best_rate(world)
    num_moves = len(world.moved)
    assert len(set(world.moved)) <= 1, "it never turned back"
    play(world, 600.0)
    assert len(world.moved) == num_moves


def test_moves_to_a_far_split_follow_each_other_at_once() -> None:
    world = World(gangs_of(11, 1), kept_share=0.4)
    plans = play(world, 130.0)
    assert [len(plan.moves) for plan in plans[:7]] == [1] * 7
    forecast = plans[0].forecast
    assert forecast is not None
    assert forecast.rate_now == pytest.approx(0.4, rel=0.02)
    assert forecast.target_num_rollout in (8, 9)
    assert plans[0].reason.startswith("training waits for rollout: one more rollout slot, the first of 7 moves, brings")


def test_a_move_that_does_not_pay_for_itself_is_not_made() -> None:
    world = World(gangs_of(6, 6), kept_share=0.7)
    assert decide(world).moves
    dear = replace(world, move_s=3000.0)
    plan = decide(dear)
    assert not plan.moves
    assert "to pay for the move" in plan.reason
    assert plan.forecast is not None
    assert plan.forecast.gain < 2 * plan.forecast.cost


def test_nothing_moves_when_the_run_is_nearly_over() -> None:
    world = World(gangs_of(6, 6), kept_share=0.7)
    policy = RateMatchingPolicy(RateMatchingConfig())
    for num_steps_left, num_moves in ((None, 1), (600, 1), (60, 1), (2, 0), (0, 0)):
        observation = replace(world.observe(), num_steps_left=num_steps_left)
        plan, _ = policy.decide(observation, policy.initial_state())
        assert len(plan.moves) == num_moves
    assert "now would gain nothing" in plan.reason, "the last step is under way"


def test_replicas_that_make_what_training_takes_in_bursts_are_not_too_few() -> None:
    """They work half the time, on more samples than run in the mean, and none just now."""
    world = World(gangs_of(2, 2), kept_share=1.0, replica_rate=2.0)
    observation = world.observe()
    admission = replace(observation.admission, max_live_groups=32, samples_per_prompt=64)
    idle = tuple(replace(each, num_running=0, busy_share=0.5) for each in observation.measured.replicas)
    observation = replace(observation, admission=admission, queue_length=0, num_in_flight=16)
    policy = RateMatchingPolicy(RateMatchingConfig())
    bursts = replace(observation, measured=replace(observation.measured, replicas=idle))
    plan, _ = policy.decide(bursts, policy.initial_state())
    assert plan.moves == ()
    assert plan.forecast is not None
    assert plan.forecast.rate_now == pytest.approx(2.0)
    slow = tuple(replace(each, busy_share=0.1) for each in idle)
    (move,) = policy.decide(
        replace(observation, measured=replace(observation.measured, replicas=slow)), policy.initial_state()
    )[0].moves
    assert move.to is Role.ROLLOUT


def test_a_trainer_more_that_adds_nothing_is_found_out_and_taken_back_or_left() -> None:
    world = World(gangs_of(2, 6), kept_share=1.0, replica_rate=0.6, useful_trainers=3)
    play(world, 4000.0)
    num_train, _ = world.counts()
    assert world.rate(*world.counts()) == best_rate(world)
    assert num_train in (3, 4, 5)
    assert len(world.moved) <= 4


def test_processors_that_are_busy_make_one_more_process_useless() -> None:
    gangs = [replace(gang, type="cpu") for gang in gangs_of(3, 1)]
    plan = decide(World(gangs, kept_share=0.3, busy=0.98))
    assert plan.moves == ()
    assert plan.reason == "the processors that the slots share are 98 % busy: one more process adds nothing"
    assert decide(World(gangs, kept_share=0.3, busy=0.6)).moves
    assert decide(World(gangs_of(3, 1), kept_share=0.3, busy=0.98)).moves, "GPUs do not compute on them"


@pytest.mark.parametrize(
    ("kept_share", "num_train", "to", "first"),
    [(0.2, 8, Role.ROLLOUT, "H200"), (1.0, 2, Role.TRAIN, "H100")],
)
def test_the_type_with_more_bandwidth_rolls_out_first_and_trains_last(
    kept_share: float, num_train: int, to: Role, first: str
) -> None:
    gangs = [*gangs_of(num_train // 2, 5 - num_train // 2), *gangs_of(num_train // 2, 5 - num_train // 2, "H200")]
    (move,) = decide(World(gangs, kept_share=kept_share)).moves
    assert move.to is to
    assert move.gang_id.startswith(first)


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize(("num_observed", "most"), [(60, 12), (500, 4)])
def test_noise_makes_few_moves_to_and_fro(seed: int, num_observed: int, most: int) -> None:
    noise = random.Random(seed)
    world = World(gangs_of(5, 7), kept_share=0.7, noise=noise, num_observed=num_observed, move_s=0.5)
    play(world, 3600.0)
    assert len(world.moved) <= most
    assert world.rate(*world.counts()) >= 0.9 * best_rate(world)


def test_no_more_moves_in_an_hour_than_allowed_whatever_the_load_does() -> None:
    world = World(gangs_of(6, 6))
    policy = RateMatchingPolicy(RateMatchingConfig(cooldown_s=0.0))
    state, moves_at = policy.initial_state(), list[float]()
    for n in range(720):
        world.kept_share = 0.2 if n // 10 % 2 else 1.0
        plan, state = policy.decide(world.observe(), state)
        world.carry_out(plan)
        moves_at += [world.time_s] * len(plan.moves)
        world.time_s += 10.0
    assert len(moves_at) > 30
    assert all(later - earlier > 3500 for earlier, later in zip(moves_at, moves_at[30:], strict=False))


def test_nothing_moves_before_both_sides_are_measured() -> None:
    policy = create_policy(RateMatchingConfig())
    plan, _ = policy.decide(make_observation(make_pool(3, 3), 50), policy.initial_state())
    assert (plan.moves, plan.reason) == ((), "no training step has been measured yet")


def test_a_new_gang_gets_a_role_at_once() -> None:
    policy = create_policy(RateMatchingConfig())
    observation = make_observation((*make_pool(2, 3), make_gang("new", idle=True)), 50)
    assert policy.decide(observation, policy.initial_state())[0].moves[0].gang_id == "new"


@settings(max_examples=60, deadline=None)
@given(
    num_train=st.integers(1, 9),
    num_rollout=st.integers(1, 9),
    kept_shares=st.lists(st.floats(0.02, 1.0), min_size=1, max_size=8),
    shares=st.tuples(st.floats(0, 0.5), st.floats(0.5, 1)),
    legal=st.sets(st.integers(1, 17)).map(lambda sizes: tuple(sorted(sizes))),
    seed=st.integers(0, 99),
)
def test_no_sequence_of_moves_breaks_a_limit(
    num_train: int,
    num_rollout: int,
    kept_shares: list[float],
    shares: tuple[float, float],
    legal: tuple[int, ...],
    seed: int,
) -> None:
    config = RateMatchingConfig(min_rollout_share=shares[0], max_rollout_share=shares[1], cooldown_s=0.0)
    policy = RateMatchingPolicy(config)
    world = World(gangs_of(num_train, num_rollout), noise=random.Random(seed))
    state, total = policy.initial_state(), len(world.gangs)
    for world.kept_share in kept_shares:
        observation = world.observe(legal)
        before = world.counts()
        plan, state = policy.decide(observation, state)
        again, state_again = policy.decide(observation, state)
        assert again == plan, "the same observation, seen again, leads to the same"
        assert state_again == state
        assert len(plan.moves) <= 1
        world.carry_out(plan)
        after = world.counts()
        assert min(after) >= 1
        if plan.moves:
            assert plan.forecast is not None
            assert plan.forecast.rate_after > plan.forecast.rate_now
            assert plan.forecast.gain > config.safety * plan.forecast.cost
            assert after[0] in legal
            if after[1] > before[1]:
                assert after[1] <= shares[1] * total + 1e-6
            else:
                assert after[1] >= shares[0] * total - 1e-6
        world.time_s += 10.0


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 9), st.floats(0.01, 5), st.floats(0.01, 5)), min_size=1, max_size=4))
def test_the_fluid_optimum_bounds_every_split(kinds: list[tuple[int, float, float]]) -> None:
    types = [
        TypeRates(type=str(n), num_gangs=count, rollout_rate=r, train_rate=s) for n, (count, r, s) in enumerate(kinds)
    ]
    optimum = fluid_optimum(types)
    assert all(0 <= x <= each.num_gangs for x, each in zip(optimum.num_rollout, types, strict=True))
    reached = min(
        sum(x * each.rollout_rate for x, each in zip(optimum.num_rollout, types, strict=True)),
        sum((each.num_gangs - x) * each.train_rate for x, each in zip(optimum.num_rollout, types, strict=True)),
    )
    assert optimum.rate == pytest.approx(reached, rel=1e-6)
    ordered = sorted(types, key=lambda each: -each.rollout_rate / each.train_rate)
    gangs = [each for each in ordered for _ in range(each.num_gangs)]
    for n in range(len(gangs) + 1):
        split = min(sum(g.rollout_rate for g in gangs[:n]), sum(g.train_rate for g in gangs[n:]))
        assert split <= optimum.rate * (1 + 1e-6)


def test_few_gangs_are_not_planned_for_and_load_no_solver() -> None:
    program = """
import sys
from rlserve.manager.config import RateMatchingConfig
from rlserve.manager.policies.factory import create_policy
from rlserve.manager.policies.planned_range import prepare_planning
create_policy(RateMatchingConfig())
prepare_planning(8)
few = "scipy" in sys.modules
prepare_planning(9)
print(few, "scipy" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "True"]


@pytest.mark.parametrize(("num_gangs", "is_planned"), [(8, False), (9, True)])
def test_a_range_is_planned_where_the_quick_rule_does_not_look_at_every_split(num_gangs: int, is_planned: bool) -> None:
    world = World(gangs_of(num_gangs - 4, 4), kept_share=0.7)
    policy = RateMatchingPolicy(RateMatchingConfig())
    _, state = policy.decide(world.observe(), policy.initial_state())
    assert (state.planned is not None) == is_planned
