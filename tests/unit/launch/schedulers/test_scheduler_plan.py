"""The machines that a job asks for follow from the run's own pool."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlserve.errors import UserError
from rlserve.launch.config import LaunchConfig
from rlserve.launch.schedulers.plan import node_groups, plain_name
from rlserve.pool.config import PoolConfig, SlotGroupConfig


def test_gpus_fill_machines_and_cpu_slots_share_one() -> None:
    slots = (
        SlotGroupConfig(type="H100", count=16, prefer="train"),
        SlotGroupConfig(type="H200", count=4),
        SlotGroupConfig(type="cpu-a", count=6, num_threads=2),
    )
    groups = node_groups(PoolConfig(slots=slots), LaunchConfig(gpus_per_node=8, cpus_per_gpu=12))
    assert [(group.name, group.num_nodes, group.slots_per_node, group.cpus_per_node) for group in groups] == [
        ("h100-0", 2, 8, 96),
        ("h200-1", 1, 4, 48),
        ("cpu-a-2", 1, 6, 12),
    ]


@given(count=st.integers(1, 64), per_node=st.integers(1, 16))
def test_no_slot_is_lost_or_invented(count: int, per_node: int) -> None:
    pool, launch = PoolConfig(slots=(SlotGroupConfig(type="H100", count=count),)), LaunchConfig(gpus_per_node=per_node)
    if count > per_node and count % per_node:
        with pytest.raises(UserError, match=r"launch\.gpus_per_node"):
            node_groups(pool, launch)
        return
    (group,) = node_groups(pool, launch)
    assert group.num_nodes * group.slots_per_node == count
    assert group.slots_per_node <= per_node


def test_a_pool_that_does_not_say_what_it_needs_is_refused() -> None:
    with pytest.raises(UserError, match=r"pool\.slots=auto"):
        node_groups(PoolConfig(slots="auto"), LaunchConfig())


@given(st.text())
def test_names_are_such_as_schedulers_allow(text: str) -> None:
    name = plain_name(text)
    assert 1 <= len(name) <= 40
    assert name[0].isalpha()
    assert name[-1].isalnum()
    assert name.isascii()
    assert set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789-")


def test_long_names_that_differ_at_their_end_stay_apart() -> None:
    long = "a-sweep-over-everything-that-may-ever-matter"
    names = {plain_name(f"{long}-{number}") for number in range(200)}
    assert len(names) == 200
    assert max(map(len, names)) <= 40
    assert plain_name("a-name-of-just-forty-characters-as-it-is") == "a-name-of-just-forty-characters-as-it-is"
