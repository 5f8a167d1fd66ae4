"""Checks of ``scale_out`` against the rest of a configuration."""

from __future__ import annotations

from collections.abc import Iterator

from rlserve.config.tree import RunConfig
from rlserve.errors import Problem

_KEY = "scale_out.max_slots"


def check_scale_out(config: RunConfig) -> Iterator[Problem]:
    """It needs a cluster with an autoscaler, rollout to grow, and room for the slots that the pool begins with."""
    asks, size = config.scale_out, config.rollout.engine.tensor_parallel_size
    if not asks.is_enabled:
        return
    if config.launch.kind != "cluster":
        yield Problem(_KEY, f"needs a Ray cluster, whose autoscaler is asked: say launch=cluster, got {asks.max_slots}")
    if config.pool.placement == "colocated":
        yield Problem(_KEY, f"is not for pool.placement=colocated, got {asks.max_slots}")
    if not config.algorithm.needs.rollouts:
        yield Problem(_KEY, f"is for rollout, which algorithm.name={config.algorithm.name} has none of")
    for name in asks.max_slots:
        if asks.node_slots(name) % size:
            message = f"must be a multiple of rollout.engine.tensor_parallel_size ({size}) for {name}"
            yield Problem("scale_out.slots_per_node", f"{message}, got {asks.node_slots(name)}")
    for group in () if config.pool.slots == "auto" else config.pool.slots:
        if group.count > asks.max_slots.get(group.type, group.count):
            message = f"must be at least the {group.count} slots of {group.type} in pool.slots"
            yield Problem(_KEY, f"{message}, got {asks.max_slots[group.type]}")
    if asks.money_per_hour is not None and config.cost.prices is None:
        yield Problem(
            "scale_out.money_per_hour", f"needs prices: name a file in cost.prices, got {asks.money_per_hour}"
        )
