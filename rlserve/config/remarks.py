"""What is legal and yet cannot do what it is there for: said in ``--dry-run`` and when a run starts, never refused."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from rlserve.config.pool_split import find_groups, split_groups
from rlserve.config.tree import RunConfig
from rlserve.errors import Problem
from rlserve.manager.config import QueueThresholdConfig
from rlserve.manager.policies.bounds import rollout_bounds
from rlserve.pool.config import PoolConfig, SlotGroupConfig
from rlserve.rollout.config import RolloutConfig


def remarks_on(config: RunConfig, discovered: Mapping[str, int]) -> tuple[Problem, ...]:
    """Remarks on a configuration that has passed all checks; ``discovered`` as for the checks."""
    if not isinstance(config.manager, QueueThresholdConfig):
        return ()
    groups = find_groups(config, discovered)
    return (
        *_on_thresholds(config.manager, config.rollout),
        *(() if groups is None else remarks_on_split(config, groups)),
    )


def remarks_on_split(config: RunConfig, groups: tuple[SlotGroupConfig, ...]) -> tuple[Problem, ...]:
    """Remarks on the split of a pool whose slots are known; of a cluster they may be known only once it is joined."""
    manager = config.manager
    return tuple(_on_split(manager, config.pool, groups)) if isinstance(manager, QueueThresholdConfig) else ()


def _on_thresholds(manager: QueueThresholdConfig, rollout: RolloutConfig) -> Iterator[Problem]:
    num_groups = (rollout.max_staleness + 1) * rollout.prompts_per_step
    if manager.queue_high >= num_groups:
        yield Problem(
            "manager.queue_high",
            f"the queue is never longer than the {num_groups} prompt groups that may be under way ((max_staleness "
            f"{rollout.max_staleness} + 1) x prompts_per_step {rollout.prompts_per_step}), so at "
            f"{manager.queue_high} no slot ever goes to rollout: set it below {num_groups}, or take manager=static",
        )
    if manager.queue_low == 0:
        yield Problem("manager.queue_low", "no queue is below 0, so no slot ever goes back to training: set it above 0")


def _on_split(
    manager: QueueThresholdConfig, pool: PoolConfig, groups: tuple[SlotGroupConfig, ...]
) -> Iterator[Problem]:
    num_slots = sum(group.count for group in groups)
    fewest, most = rollout_bounds(manager, num_slots)
    num_rollout = sum(part.num_rollout for part in split_groups(groups, pool.num_initial_rollout))
    if not fewest <= num_rollout <= most:
        yield Problem(
            "pool.slots",
            f"{num_rollout} of {num_slots} slots start as rollout, as they prefer, but the manager keeps between "
            f"{fewest} and {most}: set pool.num_initial_rollout, or change manager.min_rollout_share and "
            f"manager.max_rollout_share",
        )
    elif fewest == most and num_slots == 2:
        yield Problem("pool.slots", "one of the 2 trains and one rolls out, so nothing ever moves (manager=static)")
    elif fewest == most:
        yield Problem(
            "manager.max_rollout_share",
            f"rollout shares from {manager.min_rollout_share} to {manager.max_rollout_share} leave "
            f"{num_slots} slots one split, {fewest} for rollout, so nothing ever moves: spread them, or take "
            f"manager=static",
        )
