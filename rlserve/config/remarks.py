"""What is legal and yet cannot do what it is there for: said in ``--dry-run`` and when a run starts, never refused."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from rlserve.config.pool_split import find_groups, gang_views
from rlserve.config.tree import RunConfig
from rlserve.errors import Problem
from rlserve.manager.config import QueueThresholdConfig, RateMatchingConfig, StaticConfig
from rlserve.manager.initial_split import initial_split
from rlserve.manager.policies.bounds import rollout_bounds
from rlserve.manager.roles import Role
from rlserve.pool.config import PoolConfig
from rlserve.pool.gangs import Cut, Gang, cut_gangs

_GANG_SIZE = "rollout.engine.tensor_parallel_size"


def remarks_on(config: RunConfig, discovered: Mapping[str, int]) -> tuple[Problem, ...]:
    """Remarks on a configuration that has passed all checks; ``discovered`` as for the checks."""
    groups = find_groups(config, discovered)
    if groups is None:
        return ()
    return remarks_on_split(config, cut_gangs(groups, config.rollout.engine.tensor_parallel_size))


def remarks_on_split(config: RunConfig, cut: Cut) -> tuple[Problem, ...]:
    """Remarks on the split of a pool whose slots are known; of a cluster they may be known only once it is joined."""
    manager, size = config.deciding, config.rollout.engine.tensor_parallel_size
    left_over = f"{cut.left_over} not used: {_GANG_SIZE}={size} takes {size} slots of one type on one node at a time"
    remarks = (Problem("pool.slots", left_over),) if cut.num_left_over else ()
    if isinstance(manager, StaticConfig):
        return remarks
    return (*remarks, *_on_split(manager, config.pool, cut.gangs))


def _on_split(
    manager: QueueThresholdConfig | RateMatchingConfig, pool: PoolConfig, gangs: Sequence[Gang]
) -> Iterator[Problem]:
    num_gangs, unit = len(gangs), "slots" if all(len(gang.slots) == 1 for gang in gangs) else "gangs"
    views = gang_views(gangs, pool)
    fewest, most = rollout_bounds(manager, views)
    roles = initial_split(views, pool.num_initial_rollout)
    num_rollout = sum(role is Role.ROLLOUT for role in roles.values())
    if not fewest <= num_rollout <= most:
        yield Problem(
            "pool.slots",
            f"{num_rollout} of {num_gangs} {unit} start as rollout, as they prefer, but the manager keeps between "
            f"{fewest} and {most}: set pool.num_initial_rollout, or change manager.min_rollout_share and "
            f"manager.max_rollout_share",
        )
    elif fewest == most and num_gangs == 2:
        yield Problem("pool.slots", "one of the 2 trains and one rolls out, so nothing ever moves (manager=static)")
    elif fewest == most:
        yield Problem(
            "manager.max_rollout_share",
            f"rollout shares from {manager.min_rollout_share} to {manager.max_rollout_share} leave "
            f"{num_gangs} {unit} one split, {fewest} for rollout, so nothing ever moves: spread them, or take "
            f"manager=static",
        )
