"""The slots of a run: from the configuration, or from what the machine or the cluster has."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from rlserve.errors import PoolError
from rlserve.pool.config import PoolConfig, SlotGroupConfig
from rlserve.roofline.accelerators import SlotType, is_cpu, slot_type

DEFAULT_CPU_SLOTS = (SlotGroupConfig(type="cpu", count=4),)


@dataclass(frozen=True, kw_only=True)
class Slot:
    """A place for one worker process: one accelerator, or a share of the CPU."""

    id: str
    """``TYPE/NUMBER``."""
    type: SlotType
    prefer: Literal["train", "rollout"] | None
    num_threads: int
    node_id: str | None = None
    """Ray's id of the node that it is on; None on a machine that is a cluster by itself."""


def make_slot(group: SlotGroupConfig, number: int, node_id: str | None) -> Slot:
    """The slot of a group that has this number among those of its type."""
    return Slot(
        id=f"{group.type}/{number}",
        type=slot_type(group.type),
        prefer=group.prefer,
        num_threads=group.num_threads,
        node_id=node_id,
    )


def slot_groups(config: PoolConfig, discovered: Mapping[str, int]) -> tuple[SlotGroupConfig, ...]:
    """The groups of the pool; ``discovered`` counts the accelerators (or CPU slots) by type.

    Raises:
        PoolError: the configuration asks for more than there is.
    """
    if config.slots != "auto":
        _check_enough(config.slots, discovered)
        return config.slots
    if not discovered:
        return DEFAULT_CPU_SLOTS
    prefer = config.auto_prefer
    return tuple(SlotGroupConfig(type=name, count=count, prefer=prefer.get(name)) for name, count in discovered.items())


def at_most(groups: Iterable[SlotGroupConfig], ceilings: Mapping[str, int]) -> tuple[SlotGroupConfig, ...]:
    """The groups, with no more slots of a type than its ceiling."""
    left, kept = dict(ceilings), list[SlotGroupConfig]()
    for group in groups:
        count = min(group.count, left.get(group.type, group.count))
        if group.type in left:
            left[group.type] -= count
        if count:
            kept.append(replace(group, count=count))
    return tuple(kept)


def _check_enough(groups: tuple[SlotGroupConfig, ...], discovered: Mapping[str, int]) -> None:
    wanted: dict[str, int] = {}
    for group in groups:
        wanted[group.type] = wanted.get(group.type, 0) + group.count
    for name, count in wanted.items():
        available = discovered.get(name)
        if available is None and is_cpu(name) and not any(is_cpu(other) for other in discovered):
            continue  # CPU slots are made to measure where nobody declares them
        if count > (available or 0):
            there = ", ".join(f"{other} × {number}" for other, number in discovered.items()) or "no accelerators"
            raise PoolError(f"pool.slots asks for {name} × {count}, but there is: {there}")
