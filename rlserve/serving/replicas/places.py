"""Where each replica runs: which GPUs are its own, or how many threads."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace

from rlserve.errors import UserError
from rlserve.pool.nvidia import VISIBLE_DEVICES, Gpu, visible_gpus
from rlserve.pool.threads import thread_environment
from rlserve.serving.config import ServeConfig
from rlserve.serving.replicas.messages import Start
from rlserve.serving.replicas.replica import ReplicaPlace


def replica_places(config: ServeConfig, model_path: str) -> tuple[ReplicaPlace, ...]:
    """The place of each replica on this machine.

    Raises:
        UserError: there are too few GPUs.
        PoolError: the driver does not answer.
    """
    gpus = () if config.engine.device == "cpu" else visible_gpus()
    num_processors = len(os.sched_getaffinity(0))
    engine = config.engine
    if config.health.exact_failover and not gpus and engine.tensor_parallel_size == 1:
        engine = replace(engine, deterministic=True)
    start = Start(model_path=model_path, engine=engine, beat_interval_s=config.health.beat_interval_s)
    return tuple(
        ReplicaPlace(name=str(number), start=start, environment=environment)
        for number, environment in enumerate(environments(config, gpus, num_processors))
    )


def environments(config: ServeConfig, gpus: Sequence[Gpu], num_processors: int) -> list[Mapping[str, str]]:
    """Environment variables of each replica: GPUs of its own, or its share of the processors' threads."""
    if not gpus:
        num_threads = max(num_processors // config.num_replicas, 1)
        return [{**thread_environment(num_threads), VISIBLE_DEVICES: ""}] * config.num_replicas
    size = config.engine.tensor_parallel_size
    if len(gpus) < config.num_replicas * size:
        raise UserError(
            f"num_replicas={config.num_replicas} with engine.tensor_parallel_size={size} need "
            f"{config.num_replicas * size} GPUs, and {len(gpus)} can be seen: ask for fewer"
        )
    return [
        {VISIBLE_DEVICES: ",".join(gpu.uuid for gpu in gpus[number * size : (number + 1) * size])}
        for number in range(config.num_replicas)
    ]
