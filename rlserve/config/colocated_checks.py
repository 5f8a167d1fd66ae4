"""Checks of slots that have both roles in turn, across the parts that they concern. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from rlserve.config.tree import RunConfig
from rlserve.errors import Problem
from rlserve.pool.config import ColocatedConfig
from rlserve.trainers.backends.config import DeepSpeedTrainerConfig


def check_colocated(config: RunConfig) -> Iterator[Problem]:
    """What ``pool.placement=colocated`` does not go together with, and what goes with it alone."""
    pool, rollout = config.pool, config.rollout
    if pool.placement != "colocated":
        if pool.colocated != ColocatedConfig():
            yield Problem("pool.colocated", f"is for pool.placement=colocated only, got {pool.placement}")
        return
    if pool.keeps_slots_from_training:
        yield Problem(
            "pool.train_on_spot", "must be true with pool.placement=colocated on spot machines, where all slots train"
        )
    if pool.is_paced:
        yield Problem("pool.placement", "must be elastic or separate on paced slots, got colocated")
    if config.trainer.weights_are_spread:
        setting = "zero_stage=3" if isinstance(config.trainer, DeepSpeedTrainerConfig) else "sharding=full"
        message = f"must be elastic or separate with trainer.{setting}, where engines find no whole policy beside them"
        yield Problem("pool.placement", f"{message}, got colocated")
    if rollout.engine.tensor_parallel_size > 1:
        size = rollout.engine.tensor_parallel_size
        yield Problem("rollout.engine.tensor_parallel_size", f"must be 1 with pool.placement=colocated, got {size}")
    if pool.num_initial_rollout is not None:
        yield Problem(
            "pool.num_initial_rollout",
            f"has no effect with pool.placement=colocated: all slots roll out in turn, got {pool.num_initial_rollout}",
        )
    if pool.colocated.rollout_time_share and not rollout.max_staleness:
        yield Problem(
            "pool.colocated.rollout_time_share",
            "has no effect with rollout.max_staleness=0, where nothing is generated beyond the batch that is next, got "
            f"{pool.colocated.rollout_time_share:g}",
        )
    if pool.colocated.rollout_memory_share is not None:
        for name in ("num_blocks", "kv_cache_bytes"):
            if (value := getattr(rollout.engine, name)) is not None:
                yield Problem(
                    f"rollout.engine.{name}",
                    f"must be null beside pool.colocated.rollout_memory_share, which sizes the KV cache, got {value}",
                )
    if pool.colocated.batches_per_turn > rollout.max_staleness + 1:
        yield Problem(
            "pool.colocated.batches_per_turn",
            f"must be at most rollout.max_staleness + 1 = {rollout.max_staleness + 1}, since no more batches are ever "
            f"under way, got {pool.colocated.batches_per_turn}",
        )
