"""Gangs that come and go: newcomers get a role, no role stays empty, gangs that leave are not planned with."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from manager_builders import H20, H100, make_gang, make_observation, make_pool

from rlserve.manager.config import QueueThresholdConfig, StaticConfig
from rlserve.manager.policies.base import GangView, Move, Plan
from rlserve.manager.policies.factory import create_policy
from rlserve.manager.policies.train_only import TrainOnlyPolicy
from rlserve.manager.roles import Role

CONFIGS = {"static": StaticConfig(), "queue_threshold": QueueThresholdConfig()}
POLICIES = tuple(CONFIGS)


def decide(
    gangs: tuple[GangView, ...],
    policy_name: str = "static",
    queue_length: int | None = 50,
    last_move_end_s: float | None = 999.0,
) -> Plan:
    policy = create_policy(CONFIGS[policy_name])
    observation = make_observation(gangs, queue_length, last_move_end_s=last_move_end_s)
    return policy.decide(observation, policy.initial_state())[0]


@pytest.mark.parametrize("policy_name", POLICIES)
@pytest.mark.parametrize(
    ("num_train", "num_rollout", "prefer", "role"),
    [
        (1, 1, None, Role.ROLLOUT),
        (1, 2, None, Role.TRAIN),
        (3, 2, None, Role.ROLLOUT),
        (3, 2, Role.TRAIN, Role.TRAIN),
        (2, 3, Role.ROLLOUT, Role.ROLLOUT),
    ],
)
def test_a_newcomer_takes_the_role_that_it_prefers_or_the_smaller_one_at_once(
    policy_name: str, num_train: int, num_rollout: int, prefer: Role | None, role: Role
) -> None:
    plan = decide((*make_pool(num_train, num_rollout), make_gang("new", idle=True, prefer=prefer)), policy_name)
    assert plan.moves == (Move(gang_id="new", to=role),)
    assert plan.reason == "a new slot"


def test_a_newcomer_respects_the_largest_share_of_rollout() -> None:
    newcomer = make_gang("new", idle=True, prefer=Role.ROLLOUT)
    assert decide((*make_pool(1, 4), newcomer), "queue_threshold").moves[0].to is Role.TRAIN  # 4 of 6 are the most


def test_newcomers_wait_while_a_move_is_under_way() -> None:
    policy = create_policy(QueueThresholdConfig())
    observation = make_observation((*make_pool(2, 2), make_gang("new", idle=True)), 50, moving=True)
    assert policy.decide(observation, policy.initial_state())[0].moves == ()


@pytest.mark.parametrize("policy_name", POLICIES)
@pytest.mark.parametrize(("role", "other"), [(Role.TRAIN, Role.ROLLOUT), (Role.ROLLOUT, Role.TRAIN)])
def test_a_role_that_only_leaving_gangs_have_is_taken_by_another_first(
    policy_name: str, role: Role, other: Role
) -> None:
    leaving = make_gang("leaving", role, leaving=True)
    staying = (make_gang("a", other, figures=H20), make_gang("b", other, figures=H100))
    taker = "b" if role is Role.TRAIN else "a"
    plan = decide((leaving, *staying), policy_name)
    assert plan.moves == (Move(gang_id=taker, to=role),)
    assert plan.reason == f"no slot that stays has the {role} role"
    idle = make_gang("idle", idle=True)
    assert decide((leaving, *staying, idle), policy_name).moves == (Move(gang_id="idle", to=role),)
    assert decide((leaving, staying[0]), policy_name).moves == (), "the last one of a role keeps it"


@pytest.mark.parametrize("other", [make_gang("s"), make_gang("d", alive=False)], ids=["starting", "dead"])
def test_a_role_is_not_empty_while_somebody_is_on_the_way(other: GangView) -> None:
    assert decide((*make_pool(2, 0), other)).moves == ()


def test_a_gang_that_is_being_emptied_is_on_its_way_to_no_role() -> None:
    plan = decide((*make_pool(2, 0), make_gang("leaving", leaving=True)))
    assert plan.moves == (Move(gang_id="t0", to=Role.ROLLOUT),)


def test_the_unit_is_called_a_gang_where_it_is_one() -> None:
    gangs = tuple(replace(gang, num_slots=2) for gang in make_pool(1, 1))
    assert decide((*gangs, make_gang("new", idle=True, num_slots=2))).reason == "a new gang"
    assert decide(gangs, "queue_threshold", 500, None).reason.endswith("training keeps its last gang")


def test_a_gang_that_leaves_does_not_count() -> None:
    leaving = make_gang("leaving", Role.TRAIN, leaving=True)
    plan = decide((leaving, *make_pool(1, 3)), "queue_threshold", 500, None)
    assert plan.reason.endswith("training keeps its last slot")
    assert plan.numbers["num_train"] == 1


GANGS = st.lists(
    st.tuples(st.sampled_from([Role.TRAIN, Role.ROLLOUT, None]), st.booleans(), st.booleans(), st.booleans()),
    max_size=8,
)


@given(kinds=GANGS, queue_length=st.integers(0, 300), policy_name=st.sampled_from(POLICIES))
def test_no_move_empties_a_role_or_concerns_a_gang_that_leaves_or_is_not_there(
    kinds: list[tuple[Role | None, bool, bool, bool]], queue_length: int, policy_name: str
) -> None:
    gangs = {
        f"g{number}": make_gang(f"g{number}", role, idle=idle and role is None, alive=alive, leaving=leaving)
        for number, (role, idle, alive, leaving) in enumerate(kinds)
    }
    policy = create_policy(CONFIGS[policy_name])
    plan, _ = policy.decide(make_observation(tuple(gangs.values()), queue_length), policy.initial_state())
    for move in plan.moves:
        gang = gangs[move.gang_id]
        assert gang.alive
        assert not gang.leaving
        assert gang.idle or gang.role not in (None, move.to)
        if gang.role is not None:
            others = [each for each in gangs.values() if each.role is gang.role and each is not gang]
            assert [each for each in others if each.alive and not each.leaving]


def test_where_nothing_is_generated_newcomers_train_and_nobody_else_moves() -> None:
    policy, present = TrainOnlyPolicy(), make_pool(2, 0)
    observation = make_observation((*present, make_gang("new", idle=True, prefer=Role.ROLLOUT)), 0)
    plan, _ = policy.decide(observation, policy.initial_state())
    assert plan.moves == (Move(gang_id="new", to=Role.TRAIN),)
    for waiting in (replace(observation, moving=True), make_observation(present, 0)):
        assert policy.decide(waiting, None)[0].moves == ()
