"""A fleet of simulated workers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from simulated_workers import SimulatedWorker
from simulated_world import World

from rlserve.errors import WorkerLostError
from rlserve.pool.base import WorkerInfo, WorkerSpec
from rlserve.pool.slots import Slot


class SimulatedFleet:
    """One simulated worker for each slot."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.workers: dict[str, SimulatedWorker] = {}
        self._ready: set[str] = set()
        self._reasons: dict[str, str] = {}
        self.num_restarts = 0

    @property
    def ready(self) -> tuple[str, ...]:
        return tuple(slot_id for slot_id in self.workers if slot_id in self._ready)

    def __getitem__(self, slot_id: str) -> SimulatedWorker:
        if slot_id not in self.workers:
            raise WorkerLostError(self._reasons.get(slot_id) or f"the worker of {slot_id} was ended")
        return self.workers[slot_id]

    def share(self, value: Any) -> Any:
        return value

    def info(self, slot_id: str) -> WorkerInfo:
        return WorkerInfo(slot_id=slot_id, process_id=1, host="here")

    async def start(self, slots: Iterable[tuple[Slot, WorkerSpec]]) -> None:
        await asyncio.gather(*(self._start(slot.id) for slot, _ in slots))

    async def recover(self, slot_ids: Sequence[str], *, on_restart: Callable[[str], None]) -> tuple[str, ...]:
        (slot_id,) = slot_ids
        on_restart(slot_id)
        self.kill(slot_id)
        self._reasons.pop(slot_id, None)
        self.num_restarts += 1
        await self._start(slot_id)
        return (slot_id,)

    async def _start(self, slot_id: str) -> None:
        self.workers[slot_id] = SimulatedWorker(self.world, slot_id)
        await asyncio.sleep(self.world.speeds.start_s)
        self._ready.add(slot_id)

    def processor_s(self, slot_id: str) -> float | None:
        return None

    def is_ready_to_run(self, slot_id: str) -> bool:
        return False

    def is_stopped(self, slot_id: str) -> bool:
        return False

    def reason(self, slot_id: str) -> str | None:
        return self._reasons.get(slot_id)

    def kill(self, slot_id: str, reason: str | None = None) -> None:
        worker = self.workers.pop(slot_id, None)
        self._ready.discard(slot_id)
        if reason is not None:
            self._reasons[slot_id] = reason
        if worker is not None:
            worker.kill()

    def close(self) -> None:
        for slot_id in list(self.workers):
            self.kill(slot_id)
