"""Cutting slots into gangs: of one type and node, of one size, no slot twice; and what newcomers add."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlserve.errors import PoolError
from rlserve.pool.config import PoolConfig, SlotGroupConfig
from rlserve.pool.gangs import Gang, Node, check_gangs, cut_gangs, cut_newcomers
from rlserve.pool.slots import slot_groups


def groups(*counts: tuple[str, int]) -> tuple[SlotGroupConfig, ...]:
    return tuple(SlotGroupConfig(type=name, count=count) for name, count in counts)


def node(name: str, draining: bool = False, **counts: int) -> Node:
    return Node(id=name, name=name, counts=counts, is_draining=draining)


def places(gangs: tuple[Gang, ...]) -> list[tuple[str, str | None]]:
    return [(gang.id, gang.node_id) for gang in gangs]


def test_a_gang_of_one_has_the_id_of_its_slot() -> None:
    cut = cut_gangs(
        (
            SlotGroupConfig(type="H100", count=2, prefer="train"),
            SlotGroupConfig(type="H200", count=1, prefer="rollout"),
            SlotGroupConfig(type="H100", count=1),
        ),
        1,
    )
    assert [gang.id for gang in cut.gangs] == ["H100/0", "H100/1", "H200/0", "H100/2"]
    assert all(gang.slot_ids == (gang.id,) and gang.leader == gang.id for gang in cut.gangs)
    assert [gang.slots[0].prefer for gang in cut.gangs] == ["train", "train", "rollout", None]
    assert all(gang.slots[0].type.device == "cuda" for gang in cut.gangs)
    assert not cut.num_left_over


def test_gangs_of_two_and_what_is_left_over() -> None:
    cut = cut_gangs(groups(("H100", 5), ("cpu", 2)), 2)
    assert [(gang.id, gang.slot_ids, gang.leader) for gang in cut.gangs] == [
        ("H100/0-1", ("H100/0", "H100/1"), "H100/0"),
        ("H100/2-3", ("H100/2", "H100/3"), "H100/2"),
        ("cpu/0-1", ("cpu/0", "cpu/1"), "cpu/0"),
    ]
    assert cut.left_over == "H100 × 1"


def test_no_gang_crosses_nodes() -> None:
    cut = cut_gangs(groups(("H100", 6)), 2, nodes=[node("a", H100=3), node("b", H100=3)])
    assert places(cut.gangs) == [("H100/0-1", "a"), ("H100/2-3", "b")]
    assert cut.left_over == "H100 × 2"


def test_a_pool_without_two_gangs_is_refused() -> None:
    with pytest.raises(PoolError, match=r"tensor_parallel_size=4 needs two sets of 4 .* makes 1, with H100 × 3 left"):
        check_gangs(cut_gangs(groups(("H100", 7)), 4), 4)
    check_gangs(cut_gangs(groups(("H100", 8)), 4), 4)


def test_auto_takes_what_there_is_or_four_cpu_slots() -> None:
    assert cut_gangs(slot_groups(PoolConfig(), {"H100": 2, "A100": 1}), 1).gangs[2].id == "A100/0"
    assert len(cut_gangs(slot_groups(PoolConfig(), {}), 1).gangs) == 4


COUNTS = st.dictionaries(st.sampled_from(["H100", "A100", "cpu-a"]), st.integers(0, 9), max_size=3)
NODES = st.lists(COUNTS, min_size=1, max_size=4).map(
    lambda every: [Node(id=f"n{number}", name="host", counts=counts) for number, counts in enumerate(every)]
)


@given(nodes=NODES, size=st.integers(1, 4))
def test_every_slot_is_in_one_gang_or_left_over(nodes: list[Node], size: int) -> None:
    offered: Counter[str] = Counter()
    for each in nodes:
        offered.update(each.counts)
    cut = cut_gangs(groups(*((name, count) for name, count in offered.items() if count)), size, nodes=nodes)
    slots = [slot for gang in cut.gangs for slot in gang.slots]
    assert len({slot.id for slot in slots}) == len(slots)
    for gang in cut.gangs:
        assert len(gang.slots) == size
        assert len({(slot.node_id, slot.type.name) for slot in gang.slots}) == 1
    used = Counter((slot.node_id, slot.type.name) for slot in slots)
    for each in nodes:
        for name, count in each.counts.items():
            assert used[each.id, name] == count - count % size
    in_gangs = Counter(slot.type.name for slot in slots)
    assert {name: in_gangs[name] + cut.num_left_over.get(name, 0) for name in offered} == dict(offered)


def test_auto_takes_newcomers_of_any_type_with_numbers_of_their_own() -> None:
    present = cut_gangs(groups(("cpu-a", 2)), 1, nodes=[node("a", **{"cpu-a": 2})]).gangs
    cluster = [node("a", **{"cpu-a": 2}), node("b", **{"cpu-a": 1, "cpu-b": 1}), node("c", draining=True, H100=8)]
    cut = cut_newcomers("auto", 1, nodes=cluster, present=present)
    assert places(cut.gangs) == [("cpu-a/2", "b"), ("cpu-b/0", "b")]
    assert cut_newcomers("auto", 1, nodes=cluster, present=[*present, *cut.gangs]).gangs == ()


def test_newcomers_prefer_what_their_type_does() -> None:
    there = [node("a", H100=1, L4=1, T4=1), node("b", **{"H100-spot": 1, "T4-spot": 1})]
    wishes: Any = {"H100": "train", "L4": "rollout", "H100-spot": "rollout"}
    cut = cut_newcomers("auto", 1, nodes=there, present=[], auto_prefer=wishes)
    assert {slot.type.name: slot.prefer for gang in cut.gangs for slot in gang.slots} == {
        "H100": "train",
        "L4": "rollout",
        "T4": None,
        "H100-spot": "rollout",
        "T4-spot": None,
    }


def test_configured_slots_take_back_no_more_than_they_have_lost() -> None:
    wanted = groups(("cpu-a", 2), ("cpu-b", 1))
    first, second, third = cut_gangs(
        wanted, 1, nodes=[node("a", **{"cpu-a": 1}), node("b", **{"cpu-a": 1, "cpu-b": 1})]
    ).gangs
    cluster = [node("a", **{"cpu-a": 1}), node("c", **{"cpu-a": 9, "cpu-z": 4})]
    assert cut_newcomers(wanted, 1, nodes=cluster, present=[first, second, third]).gangs == ()
    cut = cut_newcomers(wanted, 1, nodes=cluster, present=[first], gone=[second, third])
    assert places(cut.gangs) == [("cpu-a/2", "c")]
    assert cut.num_left_over == {"cpu-b": 1}


@given(nodes=st.lists(NODES, min_size=1, max_size=4), size=st.integers(1, 3))
def test_no_number_is_used_twice_whatever_comes_and_goes(nodes: list[list[Node]], size: int) -> None:
    present: list[Gang] = []
    gone: list[Gang] = []
    for round_number, cluster in enumerate(nodes):
        there = [Node(id=f"{round_number}{each.id}", name="host", counts=each.counts) for each in cluster]
        gone, present = [*gone, *present[::2]], present[1::2]
        present += cut_newcomers("auto", size, nodes=there, present=present, gone=gone).gangs
    slots = [slot.id for gang in [*present, *gone] for slot in gang.slots]
    assert len(set(slots)) == len(slots)


def test_of_types_that_the_pool_grows_by_as_many_slots_are_taken_as_were_asked_for() -> None:
    nodes = [Node(id=name, name=name, counts={"L40S": 2}) for name in "abc"]
    listed = (SlotGroupConfig(type="L40S", count=2),)
    first = cut_newcomers(listed, 1, nodes=nodes, present=(), asked={"L40S": 3}).gangs
    assert [(gang.id, gang.node_id) for gang in first] == [("L40S/0", "a"), ("L40S/1", "a"), ("L40S/2", "b")]
    assert [gang.slots[0].prefer for gang in first] == [None, None, "rollout"]
    more = cut_newcomers("auto", 1, nodes=nodes, present=first, asked={"L40S": 5}).gangs
    assert [(gang.id, gang.node_id) for gang in more] == [("L40S/3", "b"), ("L40S/4", "c")]
    assert cut_newcomers("auto", 1, nodes=nodes, present=first, asked={"L40S": 3}).gangs == ()


def test_slots_that_were_given_back_may_be_taken_again_and_those_that_left_may_not() -> None:
    nodes = [Node(id="a", name="a", counts={"L40S": 1})]
    (gang,) = cut_newcomers("auto", 1, nodes=nodes, present=(), asked={"L40S": 1}).gangs
    assert cut_newcomers("auto", 1, nodes=nodes, present=(), gone=[gang], asked={"L40S": 1}).gangs == ()
    (again,) = cut_newcomers(
        "auto", 1, nodes=nodes, present=(), gone=[gang], asked={"L40S": 1}, given_back=[gang.id]
    ).gangs
    assert (again.id, again.node_id) == ("L40S/1", "a")
