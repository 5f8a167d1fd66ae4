"""Checks of a run that shares its cluster with others, across the parts that they concern. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from rlserve.config.tree import RunConfig
from rlserve.errors import Problem
from rlserve.pool.sharing.config import ShareConfig


def num_gangs_needed(config: RunConfig) -> int:
    """Gangs without which a run cannot go on: one trains and one rolls out, or one does what all do."""
    return 1 if config.pool.placement == "colocated" or not config.algorithm.needs.rollouts else 2


def check_sharing(config: RunConfig) -> Iterator[Problem]:
    """What ``pool.share`` needs, and floors below what the run needs."""
    share, size = config.pool.share, config.rollout.engine.tensor_parallel_size
    if not share.enabled:
        if share != ShareConfig():
            yield Problem("pool.share", "has no effect without pool.share.enabled=true")
        return
    if config.launch.kind == "local":
        yield Problem("pool.share.enabled", "has no effect with launch.kind=local: say launch=cluster")
    if config.scale_out.is_enabled:
        yield Problem("pool.share.enabled", "does not go with scale_out: Ray keeps one request for a whole cluster")
    least = num_gangs_needed(config) * size
    if share.floor is not None and share.floor < least and not share.floors:
        yield Problem("pool.share.floor", f"must be at least {least}, which the run needs to go on, got {share.floor}")
    if share.most is not None and share.most < least:
        yield Problem("pool.share.most", f"must be at least {least}, which the run needs to go on, got {share.most}")
    if config.pool.slots == "auto":
        return
    for name in sorted(share.floors.keys() - {group.type for group in config.pool.slots}):
        yield Problem("pool.share.floors", f"has {name}, of which pool.slots has none")
