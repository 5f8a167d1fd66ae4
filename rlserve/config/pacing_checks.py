"""Checks of paced slots, across the parts that they concern. Pure but for the ``config.json`` of a modelled model."""

from __future__ import annotations

from collections.abc import Iterator

from rlserve.config.tree import RunConfig
from rlserve.errors import Problem, UserError
from rlserve.pool.pacing.config import PacingConfig
from rlserve.pool.pacing.factory import run_costs
from rlserve.rollout.workload.config import WorkloadConfig
from rlserve.roofline.accelerators import is_paced, slot_type

_ADVICE = "take slots of a paced type, as in pool=paced_h100_h200"


def check_pacing(config: RunConfig) -> Iterator[Problem]:
    """Paced slots stand for accelerators that the modelled model fits on, and a load is put on nothing else."""
    slots, pacing = config.pool.slots, config.pool.pacing
    if slots == "auto" or not config.pool.is_paced:
        if config.rollout.workload != WorkloadConfig():
            yield Problem("rollout.workload", f"is for runs on paced slots only: {_ADVICE}")
        if pacing != PacingConfig():
            yield Problem("pool.pacing", f"has no effect, since no slot is paced: {_ADVICE}")
        return
    others = [group.type for group in slots if not is_paced(group.type)]
    if others:
        yield Problem("pool.slots", f"must all be of paced types or none, got {others[0]} beside others")
        return
    try:
        size = config.rollout.engine.tensor_parallel_size
        costs = run_costs(pacing, config.algorithm, config.trainer, tensor_parallel_size=size)
    except UserError as error:
        yield Problem("pool.pacing.model", str(error))
        return
    fraction = config.rollout.engine.gpu_memory_fraction
    for name in dict.fromkeys(group.type for group in slots):
        if costs.num_kv_tokens(slot_type(name), memory_fraction=fraction) < config.rollout.max_tokens:
            yield Problem(
                "pool.pacing.model",
                f"{pacing.model} leaves no room on {name} for one answer of rollout.max_tokens="
                f"{config.rollout.max_tokens} x pool.pacing.tokens_scale={pacing.tokens_scale:g} tokens: take a "
                "smaller model or more slots a replica (rollout.engine.tensor_parallel_size)",
            )
