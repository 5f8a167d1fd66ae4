"""The worker processes of all slots, as Ray actors pinned to their accelerators."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from rlserve.errors import RlserveError, WorkerLostError
from rlserve.pool.base import WorkerInfo, WorkerSpec
from rlserve.pool.discovery import accelerator_marker
from rlserve.pool.slots import Slot
from rlserve.pool.threads import thread_environment
from rlserve.pool.worker import CONCURRENCY_GROUPS, Worker
from rlserve.remote import answer

logger = logging.getLogger(__name__)

_ACCELERATOR_SHARE = 0.001  # of the marker resource that Ray gives each node for its accelerator's type
_MAX_CONCURRENT_CALLS = 8
_RELEASE_TIMEOUT_S = 30.0
"""Longest that a worker whose gang lost another may take to release what it has."""


class Fleet:
    """Starts, replaces and ends one worker process for each slot."""

    def __init__(
        self, start_timeout_s: float, *, worker_python: Callable[[Slot], str | None] = lambda slot: None
    ) -> None:
        """``worker_python`` is what Ray starts the worker of a slot with, in place of Python (a fork server's
        client)."""
        self._start_timeout_s = start_timeout_s
        self._worker_python = worker_python
        self._actors: dict[str, Any] = {}
        self._slots: dict[str, Slot] = {}
        self._specs: dict[str, WorkerSpec] = {}
        self._infos: dict[str, WorkerInfo] = {}
        self._processes: dict[str, psutil.Process] = {}
        """Of the workers on this machine that have come up."""
        self._reasons: dict[str, str] = {}

    @property
    def ready(self) -> tuple[str, ...]:
        """Slots whose worker has come up and was not ended."""
        return tuple(slot_id for slot_id in self._actors if slot_id in self._infos)

    def __getitem__(self, slot_id: str) -> Any:
        """The handle of the worker on a slot.

        Raises:
            WorkerLostError: it was ended.
        """
        if slot_id not in self._actors:
            raise WorkerLostError(self._reasons.get(slot_id) or f"the worker of {slot_id} was ended")
        return self._actors[slot_id]

    @staticmethod
    def share(value: Any) -> Any:
        """Something to hand to several workers in place of ``value``, which then travels once to each machine."""
        return ray.put(value)

    def info(self, slot_id: str) -> WorkerInfo:
        """Process and host of the worker on a slot."""
        return self._infos[slot_id]

    async def start(self, slots: Iterable[tuple[Slot, WorkerSpec]]) -> None:
        """Start the workers of slots side by side.

        Raises:
            WorkerLostError: one died while starting, or did not come up in time (named).
        """
        started = []
        for slot, spec in slots:
            self._slots[slot.id], self._specs[slot.id] = slot, spec
            self._actors[slot.id] = _create_actor(slot, spec, self._worker_python(slot))
            started.append(slot.id)
        await asyncio.gather(*(self._await_ready(slot_id) for slot_id in started))

    async def recover(self, slot_ids: Sequence[str], *, on_restart: Callable[[str], None]) -> tuple[str, ...]:
        """Bring all workers of a gang that lost one to where they have no role. Those that are gone, or do not release
        what they have, are ended and replaced; if all do, it is the first, whose engine failed by itself.

        Returns the slots with a new worker, for each of which ``on_restart`` was called before.

        Raises:
            WorkerLostError: as ``start``.
        """
        lost = list(slot_ids)
        if len(slot_ids) > 1:
            released = await asyncio.gather(*(self._release(slot_id) for slot_id in slot_ids))
            lost = [slot_id for slot_id, done in zip(slot_ids, released, strict=True) if not done] or [slot_ids[0]]
        for slot_id in lost:
            on_restart(slot_id)
        await asyncio.gather(*(self._restart(slot_id) for slot_id in lost))
        return tuple(lost)

    async def _release(self, slot_id: str) -> bool:
        try:
            await answer(self[slot_id].release.remote(), timeout_s=_RELEASE_TIMEOUT_S, what=f"{slot_id}, released")
        except RlserveError as error:
            logger.warning("%s", error)
            return False
        return True

    async def _restart(self, slot_id: str) -> None:
        self.kill(slot_id)
        self._reasons.pop(slot_id, None)
        spec = self._specs[slot_id]
        self._specs[slot_id] = replace(spec, incarnation=spec.incarnation + 1)
        slot = self._slots[slot_id]
        self._actors[slot_id] = _create_actor(slot, self._specs[slot_id], self._worker_python(slot))
        await self._await_ready(slot_id)

    def processor_s(self, slot_id: str) -> float | None:
        """Seconds of processor time that the worker of a slot has used; None where it is gone, or on another host."""
        if slot_id not in self._processes:
            return None
        try:
            times = self._processes[slot_id].cpu_times()
        except psutil.NoSuchProcess:
            return None
        return float(times.user + times.system)

    def is_ready_to_run(self, slot_id: str) -> bool:
        """Whether a thread of the worker of a slot runs, or would if it had a processor; False where its machine does
        not tell."""
        if slot_id not in self._processes:
            return False
        for stat in Path(f"/proc/{self._processes[slot_id].pid}/task").glob("*/stat"):
            with contextlib.suppress(OSError):  # the thread has ended
                if stat.read_text().rpartition(")")[2].split()[0] == "R":
                    return True
        return False

    def is_stopped(self, slot_id: str) -> bool:
        """Whether the worker of a slot is stopped by a signal (not by a debugger); False where its machine does not
        tell."""
        if slot_id not in self._processes:
            return False
        try:
            return bool(self._processes[slot_id].status() == psutil.STATUS_STOPPED)
        except psutil.NoSuchProcess:
            return False

    def reason(self, slot_id: str) -> str | None:
        """Why the last worker of a slot was ended, where ``kill`` was told."""
        return self._reasons.get(slot_id)

    def kill(self, slot_id: str, reason: str | None = None) -> None:
        """End a worker at once, also one that is stopped or wedged. Calls that wait for it fail. ``reason`` is what
        later calls are told.

        Ray asks a process to end, and kills one that is stopped only after five seconds, in which its peers wait for it
        and its slot is taken. So a process of this machine is killed here, whatever Ray does.
        """
        actor = self._actors.pop(slot_id, None)
        self._infos.pop(slot_id, None)
        process = self._processes.pop(slot_id, None)
        if process is not None:
            with contextlib.suppress(psutil.NoSuchProcess):  # psutil kills no other that has its number by now
                process.kill()
        if reason is not None:
            self._reasons[slot_id] = reason
        if actor is not None:
            ray.kill(actor, no_restart=True)

    def close(self) -> None:
        """End all workers."""
        for slot_id in list(self._actors):
            self.kill(slot_id)

    async def _await_ready(self, slot_id: str) -> None:
        what = f"the worker of {slot_id}, starting (deadline pool.worker_start_timeout_s)"
        info: WorkerInfo = await answer(self[slot_id].info.remote(), timeout_s=self._start_timeout_s, what=what)
        self._infos[slot_id] = info
        if info.host == socket.gethostname():
            with contextlib.suppress(psutil.NoSuchProcess):  # it has died since, which whoever calls it is told
                self._processes[slot_id] = psutil.Process(info.process_id)
        logger.info("worker of %s is process %d", slot_id, info.process_id)


def _create_actor(slot: Slot, spec: WorkerSpec, worker_python: str | None) -> Any:
    resources: dict[str, float]
    if slot.type.device == "cuda":
        num_gpus, resources = 1, {accelerator_marker(slot.type.name): _ACCELERATOR_SHARE}
    else:
        num_gpus, resources = 0, {slot.type.name: 1}
    runtime_env: dict[str, Any] = {"env_vars": thread_environment(slot.num_threads)}
    if worker_python is not None:
        runtime_env["py_executable"] = worker_python
    actor_class: Any = ray.remote(concurrency_groups=CONCURRENCY_GROUPS)(Worker)
    return actor_class.options(
        name=None,
        num_cpus=0,
        num_gpus=num_gpus,
        resources=resources,
        scheduling_strategy="DEFAULT" if slot.node_id is None else NodeAffinitySchedulingStrategy(slot.node_id, False),
        max_concurrency=_MAX_CONCURRENT_CALLS,
        max_restarts=0,
        runtime_env=runtime_env,
    ).remote(spec)
