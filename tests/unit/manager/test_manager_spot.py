"""Spot machines roll out: no policy and no hand lets them train, unless the user does."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from manager_builders import make_gang, make_observation

from rlserve.errors import PoolError
from rlserve.manager.config import ManagerConfig, QueueThresholdConfig, RateMatchingConfig, StaticConfig
from rlserve.manager.hand_moves import find_obstacle
from rlserve.manager.initial_split import initial_split
from rlserve.manager.policies.base import GangView
from rlserve.manager.policies.bounds import rollout_bounds
from rlserve.manager.policies.factory import create_policy
from rlserve.manager.roles import Role

CONFIGS: tuple[ManagerConfig, ...] = (
    StaticConfig(),
    QueueThresholdConfig(min_rollout_share=0.0),
    RateMatchingConfig(min_rollout_share=0.0),
)


@st.composite
def pools(draw: st.DrawFn) -> tuple[GangView, ...]:
    """Gangs that train are on demand; all others may be either."""
    gangs = list[GangView]()
    for number in range(draw(st.integers(1, 8))):
        role = draw(st.sampled_from([Role.TRAIN, Role.ROLLOUT, None]))
        gang = make_gang(f"g{number}", role, idle=role is None and draw(st.booleans()), leaving=draw(st.booleans()))
        gangs.append(replace(gang, may_train=role is Role.TRAIN or draw(st.booleans())))
    return tuple(gangs)


@given(pools(), st.sampled_from(CONFIGS), st.integers(0, 200))
def test_no_policy_lets_one_train(gangs: tuple[GangView, ...], config: ManagerConfig, queue_length: int) -> None:
    policy = create_policy(config)
    plan, _ = policy.decide(make_observation(gangs, queue_length), policy.initial_state())
    on_spot = {gang.id for gang in gangs if not gang.may_train}
    assert not [move for move in plan.moves if move.to is Role.TRAIN and move.gang_id in on_spot]


def test_an_empty_queue_takes_the_last_that_may_train_and_no_other() -> None:
    spot = replace(make_gang("spot", Role.ROLLOUT), may_train=False)
    pool = (make_gang("t", Role.TRAIN), make_gang("r", Role.ROLLOUT), spot)
    policy = create_policy(CONFIGS[1])
    (move,) = policy.decide(make_observation(pool, 0), None)[0].moves
    assert (move.gang_id, move.to) == ("r", Role.TRAIN)
    moved = (pool[0], replace(pool[1], role=Role.TRAIN), spot)
    plan = policy.decide(make_observation(moved, 0), None)[0]
    assert plan.moves == ()
    assert "rollout has its smallest share, 1 slots" in plan.reason


def test_those_that_may_not_train_are_the_fewest_that_roll_out() -> None:
    pool = [replace(make_gang(str(number)), may_train=number > 2) for number in range(5)]
    for config in CONFIGS:
        assert rollout_bounds(config, pool)[0] == 3


def test_a_run_begins_with_them_in_rollout() -> None:
    pool = [replace(make_gang(str(number), prefer=Role.ROLLOUT), may_train=number < 2) for number in range(4)]
    pool[0] = replace(pool[0], prefer=None)
    assert [gang_id for gang_id, role in initial_split(pool, None).items() if role is Role.ROLLOUT] == ["1", "2", "3"]
    assert [gang_id for gang_id, role in initial_split(pool, 2).items() if role is Role.ROLLOUT] == ["2", "3"]
    with pytest.raises(PoolError, match=r"would let some of the 2 slots on spot machines train; it must be at least 2"):
        initial_split(pool, 1)
    with pytest.raises(PoolError, match=r"all 2 slots are on spot machines, which leaves none to train"):
        initial_split(pool[2:], None)


def test_a_hand_cannot_move_one_to_training() -> None:
    spot = replace(make_gang("spot", Role.ROLLOUT), may_train=False)
    pool = (make_gang("t", Role.TRAIN), make_gang("r", Role.ROLLOUT), spot)
    said = find_obstacle("spot", Role.TRAIN, pool, (1, 2))
    assert said == "spot is on a spot machine, which trains only with pool.train_on_spot=true"
    assert find_obstacle("r", Role.TRAIN, pool, (1, 2)) is None
