"""The queue-length rule, number by number."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from manager_builders import H20, H100, H200, make_gang, make_observation, make_pool

from rlserve.manager.config import QueueThresholdConfig, StaticConfig
from rlserve.manager.policies.base import Move, Observation, Plan
from rlserve.manager.policies.factory import create_policy
from rlserve.manager.roles import Role


def decide(observation: Observation, **changes: float) -> Plan:
    """The plan under the default configuration, changed."""
    policy = create_policy(replace(QueueThresholdConfig(), **changes))
    plan, _ = policy.decide(observation, policy.initial_state())
    return plan


@pytest.mark.parametrize(
    ("queue_length", "roles"),
    [(0, [Role.TRAIN]), (9, [Role.TRAIN]), (10, []), (100, []), (101, [Role.ROLLOUT]), (10**6, [Role.ROLLOUT])],
)
def test_the_thresholds_are_as_written(queue_length: int, roles: list[Role]) -> None:
    plan = decide(make_observation(make_pool(5, 5), queue_length))
    assert [move.to for move in plan.moves] == roles


@pytest.mark.parametrize(
    ("num_train", "num_rollout", "grows"),
    [
        (3, 7, True),
        (2, 8, False),
        (1, 9, False),
        (2, 3, True),
        (1, 4, False),
        (2, 1, True),
        (1, 2, False),
        (1, 1, False),
    ],
)
def test_rollout_grows_to_eighty_per_cent_and_leaves_a_trainer(num_train: int, num_rollout: int, grows: bool) -> None:
    plan = decide(make_observation(make_pool(num_train, num_rollout), 500))
    assert [move.to for move in plan.moves] == ([Role.ROLLOUT] if grows else [])


@pytest.mark.parametrize(
    ("num_train", "num_rollout", "shrinks"),
    [(7, 3, True), (8, 2, False), (2, 2, True), (3, 1, False), (8, 4, True), (9, 3, False), (1, 1, False)],
)
def test_rollout_shrinks_to_twenty_per_cent_and_never_to_nothing(
    num_train: int, num_rollout: int, shrinks: bool
) -> None:
    plan = decide(make_observation(make_pool(num_train, num_rollout), 0))
    assert [move.to for move in plan.moves] == ([Role.TRAIN] if shrinks else [])


def test_training_keeps_its_last_slot_even_where_rollout_may_have_all() -> None:
    plan = decide(make_observation(make_pool(1, 3), 500), max_rollout_share=1.0)
    assert (plan.moves, plan.reason) == ((), "queue 500 is above 100: training keeps its last slot")


def test_the_smallest_share_may_be_zero_and_one_slot_still_stays() -> None:
    assert not decide(make_observation(make_pool(3, 1), 0), min_rollout_share=0.0).moves


def test_shares_are_free_of_rounding_errors() -> None:
    assert 0.29 * 100 < 29  # would be cut to 28
    assert decide(make_observation(make_pool(72, 28), 500), max_rollout_share=0.29, min_rollout_share=0.1).moves
    assert 0.14 * 50 > 7  # would be raised to 8
    assert decide(make_observation(make_pool(42, 8), 0), min_rollout_share=0.14).moves


def test_sizes_that_the_trainer_cannot_run_on_are_left_out() -> None:
    slots = make_pool(4, 4)
    assert not decide(make_observation(slots, 500, legal_trainer_sizes=(1, 2, 4))).moves
    assert not decide(make_observation(slots, 0, legal_trainer_sizes=(1, 2, 4))).moves
    plan = decide(make_observation(slots, 500, legal_trainer_sizes=(3, 4)))
    assert [move.to for move in plan.moves] == [Role.ROLLOUT]
    assert decide(make_observation(slots, 0, legal_trainer_sizes=(4, 6))).reason.endswith("cannot run on 5 slots")


def test_an_unknown_queue_moves_nothing() -> None:
    plan = decide(make_observation(make_pool(2, 2), None))
    assert (plan.moves, plan.reason) == ((), "queue length is unknown")
    assert "queue_length" not in plan.numbers


def test_nothing_moves_while_a_move_is_under_way() -> None:
    assert decide(make_observation(make_pool(2, 2), 500, moving=True)).reason == "a move is under way"


@pytest.mark.parametrize(("time_s", "moves"), [(100.0, 0), (159.9, 0), (160.0, 1), (161.0, 1)])
def test_the_cooldown_runs_from_the_end_of_the_last_move(time_s: float, moves: int) -> None:
    observation = make_observation(make_pool(2, 2), 500, time_s=time_s, last_move_end_s=100.0)
    assert len(decide(observation, cooldown_s=60.0).moves) == moves


def test_only_living_slots_count() -> None:
    dead = (make_gang("d0", Role.ROLLOUT, alive=False), make_gang("d1", Role.TRAIN, alive=False))
    plan = decide(make_observation((*make_pool(2, 3), *dead), 500))
    assert [move.to for move in plan.moves] == [Role.ROLLOUT]  # 3 of 5 living, at most 4
    assert not decide(make_observation((*make_pool(1, 4), *dead), 500)).moves
    plan = decide(make_observation((make_gang("d", Role.TRAIN, alive=False), *make_pool(2, 1)), 500))
    assert plan.moves[0].gang_id in ("t0", "t1")


def test_the_bandwidth_rich_type_leaves_rollout_last_and_the_flop_rich_type_training() -> None:
    train = (make_gang("a", Role.TRAIN), make_gang("b", Role.TRAIN, figures=H200), make_gang("c", Role.TRAIN))
    rollout = (
        make_gang("d", Role.ROLLOUT, figures=H20),
        make_gang("e", Role.ROLLOUT),
        make_gang("f", Role.ROLLOUT, figures=H200),
    )
    slots = (*train, *rollout)
    assert decide(make_observation(slots, 500)).moves == (Move(gang_id="b", to=Role.ROLLOUT),)
    assert decide(make_observation(slots, 0)).moves == (Move(gang_id="e", to=Role.TRAIN),)


def test_a_preference_goes_before_the_figures() -> None:
    train = (
        make_gang("a", Role.TRAIN, figures=H100, prefer=Role.ROLLOUT),
        make_gang("b", Role.TRAIN, figures=H20, prefer=Role.TRAIN),
    )
    rollout = (
        make_gang("c", Role.ROLLOUT, figures=H100, prefer=Role.ROLLOUT),
        make_gang("d", Role.ROLLOUT, figures=H20, prefer=Role.TRAIN),
    )
    slots = (*train, *rollout)
    assert decide(make_observation(slots, 500)).moves == (Move(gang_id="a", to=Role.ROLLOUT),)
    assert decide(make_observation(slots, 0)).moves == (Move(gang_id="d", to=Role.TRAIN),)


def test_a_decision_comes_with_its_numbers() -> None:
    plan = decide(make_observation(make_pool(6, 4), 101))
    assert plan.reason == "queue 101 is above 100: one more rollout slot"
    assert dict(plan.numbers) == {
        "queue_length": 101,
        "queue_high": 100,
        "queue_low": 10,
        "num_train": 6,
        "num_rollout": 4,
        "max_rollout": 8,
        "min_rollout": 2,
    }


def test_the_static_policy_moves_nothing() -> None:
    policy = create_policy(StaticConfig())
    assert policy.decide(make_observation(make_pool(5, 1), 10**6), policy.initial_state())[0].moves == ()


@given(
    num_train=st.integers(1, 12),
    num_rollout=st.integers(1, 12),
    queue_lengths=st.lists(st.integers(0, 300), min_size=1, max_size=30),
    shares=st.tuples(st.floats(0, 1), st.floats(0.01, 1)).map(sorted),
    legal_trainer_sizes=st.sets(st.integers(1, 24)).map(lambda sizes: tuple(sorted(sizes))),
)
def test_no_sequence_of_moves_breaks_a_limit(
    num_train: int,
    num_rollout: int,
    queue_lengths: list[int],
    shares: list[float],
    legal_trainer_sizes: tuple[int, ...],
) -> None:
    policy = create_policy(QueueThresholdConfig(min_rollout_share=shares[0], max_rollout_share=max(shares[1], 0.01)))
    slots = {slot.id: slot for slot in make_pool(num_train, num_rollout)}
    for queue_length in queue_lengths:
        observation = make_observation(tuple(slots.values()), queue_length, legal_trainer_sizes=legal_trainer_sizes)
        plan, _ = policy.decide(observation, policy.initial_state())
        for move in plan.moves:
            assert slots[move.gang_id].role is not move.to
            slots[move.gang_id] = replace(slots[move.gang_id], role=move.to)
            rollout = sum(slot.role is Role.ROLLOUT for slot in slots.values())
            assert 1 <= rollout < len(slots)
            assert len(slots) - rollout in legal_trainer_sizes
            if move.to is Role.ROLLOUT:
                assert queue_length > 100
                assert rollout <= shares[1] * len(slots) + 1e-6
            else:
                assert queue_length < 10
                assert rollout >= math.ceil(shares[0] * len(slots) - 1e-6)
        assert len(plan.moves) <= 1
