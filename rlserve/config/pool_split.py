"""The split of the pool that a configuration leads to: who trains, who rolls out, how far that may change."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from rlserve.config.tree import RunConfig
from rlserve.manager.initial_split import initial_split
from rlserve.manager.policies.base import Role, SlotFigures, SlotView
from rlserve.manager.policies.bounds import rollout_bounds
from rlserve.pool.config import SlotGroupConfig
from rlserve.pool.slots import Slot, expand, slot_groups


@dataclass(frozen=True, kw_only=True)
class GroupSplit:
    """How one group of slots starts."""

    group: SlotGroupConfig
    num_rollout: int

    @property
    def start(self) -> str:
        """Roles at the start, in words."""
        num_train = self.group.count - self.num_rollout
        if not num_train or not self.num_rollout:
            return Role.TRAIN if num_train else Role.ROLLOUT
        return f"{num_train} {Role.TRAIN}, {self.num_rollout} {Role.ROLLOUT}"


def find_groups(config: RunConfig, discovered: Mapping[str, int]) -> tuple[SlotGroupConfig, ...] | None:
    """The groups of slots; None where only the cluster, once joined, can tell.

    Raises:
        PoolError: this machine does not have what is asked for.
    """
    if config.launch.kind == "local":
        return slot_groups(config.pool, discovered)
    return None if config.pool.slots == "auto" else config.pool.slots


def split_groups(groups: tuple[SlotGroupConfig, ...], num_initial_rollout: int | None) -> tuple[GroupSplit, ...]:
    """How each group starts.

    Raises:
        PoolError: no such split.
    """
    slots = expand(groups)
    roles = initial_split([slot_view(slot) for slot in slots], num_initial_rollout)
    ends = [sum(group.count for group in groups[: index + 1]) for index in range(len(groups))]
    return tuple(
        GroupSplit(
            group=group,
            num_rollout=sum(roles[slot.id] is Role.ROLLOUT for slot in slots[end - group.count : end]),
        )
        for group, end in zip(groups, ends, strict=True)
    )


def render_split(config: RunConfig, discovered: Mapping[str, int]) -> str:
    """The split as a table with its bounds, for people."""
    batch, samples = config.rollout.prompts_per_step, config.rollout.samples_per_prompt
    num_groups = (config.rollout.max_staleness + 1) * batch
    in_flight = (
        f"in flight and buffered: at most {num_groups} prompt groups = {num_groups * samples} samples "
        f"((max_staleness {config.rollout.max_staleness} + 1) x prompts_per_step {batch})"
    )
    groups = find_groups(config, discovered)
    if groups is None:
        return f"slots: those of the cluster, found at launch\n{in_flight}\n"
    parts = split_groups(groups, config.pool.num_initial_rollout)
    num_slots, num_rollout = sum(group.count for group in groups), sum(part.num_rollout for part in parts)
    fewest, most = rollout_bounds(config.manager, num_slots)
    rows = [("group", "type", "count", "prefers", "starts as")]
    rows += [
        (str(index), part.group.type, str(part.group.count), part.group.prefer or "-", part.start)
        for index, part in enumerate(parts)
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    table = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    moves = "never moved" if config.manager.policy == "static" else f"at least {fewest}, at most {most}"
    rollout = f"rollout slots: {num_rollout} of {num_slots} at the start; {moves} ({config.manager.policy})"
    return "\n".join([*table, rollout, in_flight, ""])


def slot_view(slot: Slot, *, role: Role | None = None, alive: bool = True) -> SlotView:
    """A slot of the pool as policies see it."""
    figures = SlotFigures(memory_bandwidth_gb_s=slot.type.memory_bandwidth_gb_s, flops_tflops=slot.type.flops_tflops)
    return SlotView(
        id=slot.id,
        type=slot.type.name,
        figures=figures,
        prefer=None if slot.prefer is None else Role(slot.prefer),
        role=role,
        alive=alive,
    )
