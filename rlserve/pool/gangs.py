"""Gangs: the unit that moves between training and rollout.

A gang is a fixed set of slots of one type on one node, as many as one replica needs
(``rollout.engine.tensor_parallel_size``; one by default). Its slots change roles together: a replica is one engine over
all of them, and trainers gain or lose all of them at once. Gangs are cut here, by pure functions, from the groups that
a pool asks for and from what its nodes have.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Literal

from rlserve.errors import PoolError
from rlserve.pool.config import SlotGroupConfig
from rlserve.pool.slots import Slot, make_slot


@dataclass(frozen=True, kw_only=True)
class Node:
    """What one node of a cluster offers."""

    id: str
    """Ray's."""
    name: str
    """Host, for people."""
    counts: Mapping[str, int]
    """Slots by type."""
    is_draining: bool = False
    """It has said that it will leave."""
    grace_s: float | None = None
    """Seconds until it does, where it has said that too."""


@dataclass(frozen=True, kw_only=True)
class Gang:
    """Slots that move together. With a single slot its id is the slot's, else ``TYPE/FIRST-LAST``."""

    id: str
    slots: tuple[Slot, ...]
    """By rank in a replica: the first one leads. All of one type, on one node."""

    @property
    def slot_ids(self) -> tuple[str, ...]:
        """Ids of its slots, by rank."""
        return tuple(slot.id for slot in self.slots)

    @property
    def leader(self) -> str:
        """The slot whose worker schedules and samples for the others."""
        return self.slots[0].id

    @property
    def node_id(self) -> str | None:
        """The node that all of it is on; None on a machine that is a cluster by itself."""
        return self.slots[0].node_id


@dataclass(frozen=True, kw_only=True)
class Cut:
    """Gangs of a pool, and what did not make a whole one."""

    gangs: tuple[Gang, ...]
    num_left_over: Mapping[str, int] = field(default_factory=dict)
    """Slots by type that no gang has, because their node lacks enough of them."""

    @property
    def left_over(self) -> str:
        """Those in words: ``H100 × 2``."""
        return ", ".join(f"{name} × {count}" for name, count in self.num_left_over.items())


def cut_gangs(
    groups: Iterable[SlotGroupConfig],
    size: int,
    *,
    nodes: Sequence[Node] | None = None,
    first_numbers: Mapping[str, int] | None = None,
) -> Cut:
    """Cut the slots of each group into gangs of ``size``, node by node in order.

    Args:
        groups: what is wanted; the gangs of a group come in its place.
        size: slots of a gang.
        nodes: where slots may be; None is one machine that has all that is wanted.
        first_numbers: the number of the first slot of a type, where others had the numbers before it.
    """
    numbers = Counter(first_numbers or {})
    free = None if nodes is None else {node.id: Counter(node.counts) for node in nodes}
    gangs: list[Gang] = []
    num_left_over: Counter[str] = Counter()
    for group in groups:
        num_wanted = group.count
        for node_id, num_free in _offers(group.type, num_wanted, free):
            num_gangs = max(0, min(num_wanted, num_free)) // size
            for _ in range(num_gangs):
                first = numbers[group.type]
                slots = tuple(make_slot(group, number, node_id) for number in range(first, first + size))
                gangs.append(Gang(id=_gang_id(slots), slots=slots))
                numbers[group.type] += size
            num_wanted -= num_gangs * size
            if free is not None and node_id is not None:
                free[node_id][group.type] -= num_gangs * size
        if num_wanted:
            num_left_over[group.type] += num_wanted
    return Cut(gangs=tuple(gangs), num_left_over=dict(num_left_over))


def check_gangs(cut: Cut, size: int) -> None:
    """Refuse a pool that makes fewer than two gangs: one trains and one rolls out.

    Raises:
        PoolError: it makes fewer.
    """
    if size > 1 and len(cut.gangs) < 2:
        raise PoolError(
            f"rollout.engine.tensor_parallel_size={size} needs two sets of {size} slots of one type, each on one node: "
            f"one to train and one to roll out; the pool makes {len(cut.gangs)}, with {cut.left_over} left over"
        )


def cut_newcomers(
    wanted: Literal["auto"] | Sequence[SlotGroupConfig],
    size: int,
    *,
    nodes: Iterable[Node],
    present: Iterable[Gang],
    gone: Iterable[Gang] = (),
    auto_prefer: Mapping[str, Literal["train", "rollout"]] = MappingProxyType({}),
    asked: Mapping[str, int] = MappingProxyType({}),
    given_back: Collection[str] = (),
) -> Cut:
    """Gangs of slots that nodes offer and no gang has.

    ``auto`` takes all of them, of any type. Configured groups take no more than they have lost, so the pool is never
    larger than they say. Numbers of slots are never used twice.

    Args:
        wanted: the slots that the pool is configured to have.
        size: slots of a gang.
        nodes: the nodes that are there now.
        present: the gangs that the pool has, on whatever node.
        gone: those that it had, whose slots are not taken again.
        auto_prefer: with ``auto``, the role that slots of a type prefer.
        asked: slots of types that the run grows by, of which it takes so many in all; they prefer to roll out.
        given_back: ids of those gone whose slots may be taken again all the same, as they are of no use, or were lent.
    """
    present, gone = list(present), list(gone)
    # What was given up on a node that is still there is not taken again.
    kept = [*present, *(gang for gang in gone if gang.id not in given_back)]
    used = Counter((slot.node_id, slot.type.name) for gang in kept for slot in gang.slots)
    free = [
        replace(node, counts={name: count - used[node.id, name] for name, count in node.counts.items()})
        for node in nodes
        if not node.is_draining
    ]
    had = Counter(slot.type.name for gang in present for slot in gang.slots)
    if wanted == "auto":
        offered = Counter[str]()
        for node in free:
            offered.update(node.counts)
        groups = [
            SlotGroupConfig(type=name, count=count, prefer=auto_prefer.get(name))
            for name, count in sorted(offered.items())
            if count > 0 and name not in asked
        ]
    else:
        groups = []
        for group in wanted:
            num_had = min(group.count, had[group.type])
            had[group.type] -= num_had
            if num_had < group.count:
                groups.append(replace(group, count=group.count - num_had))
    listed = Counter[str]()
    for group in () if wanted == "auto" else wanted:
        listed[group.type] += group.count
    for name, count in sorted(asked.items()):
        if (num_more := count - listed[name] - had[name]) > 0:
            groups.append(SlotGroupConfig(type=name, count=num_more, prefer=auto_prefer.get(name, "rollout")))
    return cut_gangs(groups, size, nodes=free, first_numbers=_next_numbers([*present, *gone]))


def _next_numbers(gangs: Iterable[Gang]) -> Mapping[str, int]:
    numbers: dict[str, int] = {}
    for slot in (slot for gang in gangs for slot in gang.slots):
        numbers[slot.type.name] = max(numbers.get(slot.type.name, 0), int(slot.id.rpartition("/")[2]) + 1)
    return numbers


def _offers(
    type_name: str, num_wanted: int, free: Mapping[str, Counter[str]] | None
) -> Iterable[tuple[str | None, int]]:
    """Nodes with free slots of a type, and how many."""
    if free is None:
        return [(None, num_wanted)]
    return [(node_id, counts[type_name]) for node_id, counts in free.items()]


def _gang_id(slots: Sequence[Slot]) -> str:
    first, last = slots[0].id, slots[-1].id
    return first if first == last else f"{first}-{last.rpartition('/')[2]}"
