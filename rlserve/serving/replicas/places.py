"""Where each replica runs: which GPUs are its own, or how many threads."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from rlserve.errors import UserError
from rlserve.pool.nvidia import VISIBLE_DEVICES, Gpu, visible_gpus
from rlserve.pool.threads import thread_environment
from rlserve.serving.config import ServeConfig
from rlserve.serving.replicas.messages import Start
from rlserve.serving.replicas.replica import ReplicaPlace

_PIECES_PER_S = 300
"""For each processor: a piece of a stream takes the front about 60 us, so that is less than 2 % of it."""


def replica_places(config: ServeConfig, model_path: str) -> tuple[ReplicaPlace, ...]:
    """The place of each replica on this machine; with scaling, of as many as there may ever be.

    Raises:
        UserError: there are too few GPUs.
        PoolError: the driver does not answer.
    """
    gpus = () if config.engine.device == "cpu" else visible_gpus()
    num_processors = len(os.sched_getaffinity(0))
    engine = config.engine
    if config.health.exact_failover and not gpus and engine.tensor_parallel_size == 1:
        engine = replace(engine, deterministic=True)
    start = Start(
        model_path=model_path,
        engine=engine,
        beat_interval_s=config.health.beat_interval_s,
        max_pieces_per_s=(config.max_pieces_per_s or _PIECES_PER_S * num_processors) / config.num_replicas,
        adapters=adapter_folders(config),
    )
    return tuple(
        ReplicaPlace(name=str(number), start=start, environment=environment, log_format=config.log_format)
        for number, environment in enumerate(environments(config, gpus, num_processors))
    )


def adapter_folders(config: ServeConfig) -> dict[str, str]:
    """By name, wherever a process is started."""
    return {name: str(Path(folder).expanduser().absolute()) for name, folder in config.model.adapters.items()}


def environments(config: ServeConfig, gpus: Sequence[Gpu], num_processors: int) -> list[Mapping[str, str]]:
    """Environment variables of each replica: GPUs of its own, or its share of the processors' threads."""
    size = config.engine.tensor_parallel_size
    key, most = "num_replicas", config.num_replicas
    if config.scaling.enabled and config.scaling.max_replicas is not None:
        key, most = "scaling.max_replicas", config.scaling.max_replicas
    elif config.scaling.enabled:
        most = max(most, len(gpus) // size if gpus else num_processors // 2)
    if not gpus:
        return [{**thread_environment(max(num_processors // most, 1)), VISIBLE_DEVICES: ""}] * most
    if len(gpus) < most * size:
        raise UserError(
            f"{key}={most} with engine.tensor_parallel_size={size} need "
            f"{most * size} GPUs, and {len(gpus)} can be seen: ask for fewer"
        )
    return [
        {VISIBLE_DEVICES: ",".join(gpu.uuid for gpu in gpus[number * size : (number + 1) * size])}
        for number in range(most)
    ]
