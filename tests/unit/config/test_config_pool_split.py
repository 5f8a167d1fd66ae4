"""The split of the pool: its table, and the bounds that it keeps."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from config_builders import config_of
from hypothesis import given
from hypothesis import strategies as st

from rlserve.config.checks import check_parts
from rlserve.config.pool_split import render_split
from rlserve.config.remarks import remarks_on_split
from rlserve.manager.config import QueueThresholdConfig
from rlserve.manager.measurement.figures import Measurements
from rlserve.manager.policies.base import Admission, GangFigures, GangView, Observation
from rlserve.manager.policies.bounds import rollout_bounds
from rlserve.manager.policies.queue_threshold import QueueThresholdPolicy
from rlserve.manager.roles import Role
from rlserve.pool.gangs import cut_gangs


def views(num_slots: int) -> tuple[GangView, ...]:
    """Like slots."""
    figures = GangFigures(memory_bandwidth_gb_s=1, flops_tflops=1)
    return tuple(GangView(id=str(index), type="cpu", figures=figures) for index in range(num_slots))


def reachable_rollout(manager: QueueThresholdConfig, num_slots: int, num_rollout: int, queue_length: int) -> int:
    """Rollout slots once the policy has nothing more to move, the queue staying as it is."""
    policy = QueueThresholdPolicy(manager)
    roles = [Role.ROLLOUT if index < num_rollout else Role.TRAIN for index in range(num_slots)]
    for _ in range(num_slots):
        gangs = tuple(replace(view, role=role) for view, role in zip(views(num_slots), roles, strict=True))
        observation = Observation(
            time_s=0,
            queue_length=queue_length,
            num_buffered=0,
            num_in_flight=0,
            trainer_waiting=False,
            num_steps_left=None,
            admission=Admission(
                prompts_per_step=16, samples_per_prompt=8, max_live_groups=32, max_samples_per_replica=64
            ),
            measured=Measurements(),
            gangs=gangs,
            legal_trainer_sizes=tuple(range(1, num_slots + 1)),
            moving=False,
            last_move_end_s=None,
        )
        for move in policy.decide(observation, None)[0].moves:
            roles[int(move.gang_id)] = move.to
    return roles.count(Role.ROLLOUT)


@given(st.integers(2, 24), st.integers(0, 100), st.integers(1, 100))
def test_the_bounds_are_those_that_the_policy_keeps(num_slots: int, low_percent: int, high_percent: int) -> None:
    low_percent, high_percent = sorted((low_percent, high_percent))
    manager = QueueThresholdConfig(min_rollout_share=low_percent / 100, max_rollout_share=max(high_percent, 1) / 100)
    fewest, most = rollout_bounds(manager, views(num_slots))
    if fewest <= most:
        assert reachable_rollout(manager, num_slots, fewest, manager.queue_high + 1) == most
        assert reachable_rollout(manager, num_slots, most, manager.queue_low - 1) == fewest


def test_the_split_as_a_table() -> None:
    assert render_split(config_of(), {}) == (
        "group  type   count  prefers  starts as\n"
        "0      cpu-a  2      train    train\n"
        "1      cpu-b  2      rollout  rollout\n"
        "rollout slots: 2 of 4 at the start; at least 1, at most 3 (rate_matching)\n"
        "in flight and buffered: at most 32 prompt groups = 256 samples ((max_staleness 1 + 1) x prompts_per_step 16)\n"
    )


def test_a_group_that_is_divided_and_a_split_that_stays() -> None:
    config = config_of(pool={"slots": "auto", "num_initial_rollout": 1}, manager={"policy": "static"})
    lines = render_split(config, {}).splitlines()
    assert lines[1] == "0      cpu   4      -        3 train, 1 rollout"
    assert lines[2] == "rollout slots: 1 of 4 at the start; never moved (static)"


def test_separate_roles_are_those_of_the_static_policy_whatever_the_manager() -> None:
    """Its shares are no bounds, and nothing moves."""
    slots = [{"type": "cpu", "count": 10}]
    keys: dict[str, Any] = {
        "manager": {"policy": "queue_threshold", "min_rollout_share": 0.3, "queue_high": 8, "queue_low": 3}
    }
    config = config_of(pool={"slots": slots, "num_initial_rollout": 1, "placement": "separate"}, **keys)
    assert check_parts(config, {}) == ()
    assert render_split(config, {}).splitlines()[2] == "rollout slots: 1 of 10 at the start; never moved (static)"
    elastic = config_of(pool={"slots": slots, "num_initial_rollout": 1}, **keys)
    assert [problem.key for problem in check_parts(elastic, {})] == ["pool.num_initial_rollout"]


def test_the_split_in_gangs() -> None:
    slots = [{"type": "cpu-a", "count": 4, "prefer": "train"}, {"type": "cpu-b", "count": 3, "prefer": "rollout"}]
    config = config_of(pool={"slots": slots}, rollout={"engine": {"tensor_parallel_size": 2}})
    lines = render_split(config, {}).splitlines()
    assert lines[1:5] == [
        "0      cpu-a  4      train    train",
        "1      cpu-b  3      rollout  2 rollout, 1 left over",
        "rollout slots: 2 of 6 at the start; at least 2, at most 4 (rate_matching)",
        "gangs: 3 of 2 slots each (rollout.engine.tensor_parallel_size)",
    ]
    (remark,) = remarks_on_split(config, cut_gangs(config.pool.slots, 2))
    assert str(remark).startswith("pool.slots: cpu-b × 1 not used: rollout.engine.tensor_parallel_size=2 takes 2 slots")


def test_a_cluster_whose_slots_are_not_known_yet() -> None:
    config = config_of(pool={"slots": "auto"}, launch={"kind": "cluster"})
    assert render_split(config, {}).startswith("slots: those of the cluster, found at launch\n")


def test_slots_on_spot_machines_roll_out() -> None:
    slots = [{"type": "H100", "count": 2}, {"type": "H100-spot", "count": 3}]
    pool = {"slots": slots}
    config = config_of(pool=pool, launch={"kind": "cluster"})
    assert render_split(config, {}).splitlines()[1:4] == [
        "0      H100       2      -        train",
        "1      H100-spot  3      -        rollout",
        "rollout slots: 3 of 5 at the start; at least 3, at most 4 (rate_matching)",
    ]
    colocated = config_of(pool={**pool, "placement": "colocated"}, launch={"kind": "cluster"})
    assert "pool.train_on_spot" in {problem.key for problem in check_parts(colocated, {})}
    asked = config_of(pool={**pool, "placement": "colocated", "train_on_spot": True}, launch={"kind": "cluster"})
    assert "pool.train_on_spot" not in {problem.key for problem in check_parts(asked, {})}
