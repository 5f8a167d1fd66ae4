"""The outside of a real run: workers as Ray actors, scorers as such or as plain processes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial

from rlserve.controller.clients.desk import ClientDesk
from rlserve.controller.ports import Front, Ports, ProcessorSource
from rlserve.controller.preparation.prepare import Preparation
from rlserve.controller.setup import RunSetup
from rlserve.pool.autoscaler import request_nodes
from rlserve.pool.discovery import discover_cluster, node_labels
from rlserve.pool.fleet import Fleet
from rlserve.pool.fork_server import worker_python_of
from rlserve.pool.gangs import Node
from rlserve.pool.processors import Processors
from rlserve.pool.slots import Slot
from rlserve.rollout.config import RewardConfig
from rlserve.rollout.environments.factory import create_environments
from rlserve.rollout.scoring.base import AnswerScorer
from rlserve.rollout.scoring.factory import create_scorer


def ray_ports(setup: RunSetup) -> Ports:
    """Nothing is started yet."""
    return Ports(
        fleet=Fleet(setup.config.pool.worker_start_timeout_s, worker_python=_worker_python(setup)),
        scorer=_scorer(setup, setup.preparation.reward) if isinstance(setup.preparation, Preparation) else None,
        environments=create_environments(setup.config.environment, setup.folder.path / "logs" / "environment.log"),
        nodes=_cluster_nodes if setup.config.launch.kind == "cluster" else None,
        request_nodes=request_nodes if setup.config.scale_out.is_enabled else None,
        sharing=setup.sharing,
        front=partial(_front, setup) if setup.config.rollout.server.enabled else None,
        processors=_own_processors() if _computes_here(setup) else None,
    )


def _worker_python(setup: RunSetup) -> Callable[[Slot], str | None]:
    """By the fork server of this process, or that of the slot's node."""
    if setup.config.launch.kind == "local":
        return lambda slot: setup.worker_python
    return lambda slot: worker_python_of(node_labels(slot.node_id), slot.num_threads)


def _front(setup: RunSetup, desk: ClientDesk) -> Front:
    from rlserve.controller.clients.server import ClientServer  # needs rlserve[serve]

    return ClientServer(setup.config, setup.folder, desk, model_path=setup.preparation.model_path)


def _scorer(setup: RunSetup, reward: RewardConfig) -> AnswerScorer:
    log_path, is_local = setup.folder.path / "logs" / "reward.log", setup.config.launch.kind == "local"
    return create_scorer(reward, log_path, on_this_machine=is_local)


def _computes_here(setup: RunSetup) -> bool:
    devices = {slot.type.device for gang in setup.gangs for slot in gang.slots}
    return setup.config.launch.kind == "local" and "cpu" in devices


def _own_processors() -> ProcessorSource:
    processors = Processors()
    return lambda: {"this machine": processors.busy_share()}


async def _cluster_nodes() -> tuple[Node, ...]:
    return await asyncio.to_thread(discover_cluster)
