"""The split of the pool that a configuration leads to: who trains, who rolls out, how far that may change."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from rlserve.config.tree import RunConfig
from rlserve.manager.initial_split import initial_split
from rlserve.manager.policies.base import GangFigures, GangView
from rlserve.manager.policies.bounds import rollout_bounds
from rlserve.manager.roles import Role
from rlserve.pool.config import PoolConfig, SlotGroupConfig
from rlserve.pool.gangs import Gang, check_gangs, cut_gangs
from rlserve.pool.slots import slot_groups
from rlserve.roofline.accelerators import is_spot


@dataclass(frozen=True, kw_only=True)
class GroupSplit:
    """How one group of slots starts."""

    group: SlotGroupConfig
    num_train: int
    num_rollout: int

    @property
    def start(self) -> str:
        """Roles of its slots at the start, in words."""
        num_idle = self.group.count - self.num_train - self.num_rollout
        parts = {Role.TRAIN: self.num_train, Role.ROLLOUT: self.num_rollout, "left over": num_idle}
        present = {name: count for name, count in parts.items() if count}
        if len(present) == 1:
            return str(next(iter(present)))
        return ", ".join(f"{count} {name}" for name, count in present.items())


def find_groups(config: RunConfig, discovered: Mapping[str, int]) -> tuple[SlotGroupConfig, ...] | None:
    """The groups of slots; None where only the cluster, once joined, can tell.

    Raises:
        PoolError: this machine does not have what is asked for.
    """
    if config.launch.kind == "local":
        return slot_groups(config.pool, discovered)
    return None if config.pool.slots == "auto" else config.pool.slots


def first_roles(config: RunConfig, gangs: Sequence[Gang]) -> dict[str, Role]:
    """The first role of every gang, by gang id: where they have both in turn, or nothing is generated, all begin as
    trainers.

    Raises:
        PoolError: no such split.
    """
    if config.pool.placement == "colocated" or not config.algorithm.needs.rollouts:
        return {gang.id: Role.TRAIN for gang in gangs}
    return initial_split(gang_views(gangs, config.pool), config.pool.num_initial_rollout)


def split_groups(groups: tuple[SlotGroupConfig, ...], pool: PoolConfig, gang_size: int) -> tuple[GroupSplit, ...]:
    """How each group starts.

    Raises:
        PoolError: no such split.
    """
    cut = cut_gangs(groups, gang_size)
    check_gangs(cut, gang_size)
    roles = initial_split(gang_views(cut.gangs, pool), pool.num_initial_rollout)
    assigned = iter(roles.values())
    parts = []
    for group in groups:
        own = [next(assigned) for _ in range(group.count // gang_size)]
        num_train, num_rollout = (own.count(role) * gang_size for role in (Role.TRAIN, Role.ROLLOUT))
        parts.append(GroupSplit(group=group, num_train=num_train, num_rollout=num_rollout))
    return tuple(parts)


def render_split(config: RunConfig, discovered: Mapping[str, int]) -> str:
    """The split as a table with its bounds, for people."""
    if not config.algorithm.needs.rollouts:
        return _render_trainers(config, discovered)
    batch, samples = config.rollout.prompts_per_step, config.num_answers_per_prompt
    num_groups = (config.rollout.max_staleness + 1) * batch
    in_flight = (
        f"in flight and buffered: at most {num_groups} prompt groups = {num_groups * samples} samples "
        f"((max_staleness {config.rollout.max_staleness} + 1) x prompts_per_step {batch})"
    )
    groups = find_groups(config, discovered)
    if groups is None:
        return f"slots: those of the cluster, found at launch\n{in_flight}\n"
    size = config.rollout.engine.tensor_parallel_size
    if config.pool.placement == "colocated":
        slots = ", ".join(f"{group.count} {group.type}" for group in groups)
        return f"slots: {slots}; all of them roll out and train in turn (pool.placement=colocated)\n{in_flight}\n"
    parts = split_groups(groups, config.pool, size)
    num_rollout = sum(part.num_rollout for part in parts)
    num_slots = num_rollout + sum(part.num_train for part in parts)
    fewest, most = rollout_bounds(config.deciding, gang_views(cut_gangs(groups, size).gangs, config.pool))
    rows = [("group", "type", "count", "prefers", "starts as")]
    rows += [
        (str(index), part.group.type, str(part.group.count), part.group.prefer or "-", part.start)
        for index, part in enumerate(parts)
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    table = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    moves = "never moved" if config.deciding.policy == "static" else f"at least {fewest * size}, at most {most * size}"
    rollout = f"rollout slots: {num_rollout} of {num_slots} at the start; {moves} ({config.deciding.policy})"
    if size > 1:
        rollout += f"\ngangs: {num_slots // size} of {size} slots each (rollout.engine.tensor_parallel_size)"
    return "\n".join([*table, rollout, in_flight, ""])


def _render_trainers(config: RunConfig, discovered: Mapping[str, int]) -> str:
    groups = find_groups(config, discovered)
    if groups is None:
        return "slots: those of the cluster, found at launch; all of them train\n"
    return f"slots: {', '.join(f'{group.count} {group.type}' for group in groups)}; all of them train\n"


def gang_views(gangs: Iterable[Gang], pool: PoolConfig) -> tuple[GangView, ...]:
    """Gangs without a role yet, as policies see them."""
    return tuple(gang_view(gang, train_on_spot=pool.train_on_spot) for gang in gangs)


def gang_view(
    gang: Gang,
    *,
    train_on_spot: bool,
    role: Role | None = None,
    idle: bool = False,
    alive: bool = True,
    leaving: bool = False,
) -> GangView:
    """A gang of the pool as policies see it."""
    first = gang.slots[0]
    return GangView(
        id=gang.id,
        type=first.type.name,
        num_slots=len(gang.slots),
        figures=GangFigures(
            memory_bandwidth_gb_s=first.type.memory_bandwidth_gb_s, flops_tflops=first.type.flops_tflops
        ),
        prefer=None if first.prefer is None else Role(first.prefer),
        may_train=train_on_spot or not is_spot(first.type.name),
        role=role,
        idle=idle,
        alive=alive,
        leaving=leaving,
    )
