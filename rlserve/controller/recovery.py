"""Lost workers: noted once, replaced, and their gangs brought back to the role that they had or were going to have.

::

    a worker of a gang is lost ──► the gang is dead ──► its worker is replaced, the others release what they have
                                                        ──► idle ──► the role again, with a new group of engine ranks

Only the last gang of trainers goes on while a worker of it is replaced: its others hold the state of the run. A gang
whose node leaves, or has left, is not brought back: it is gone.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Coroutine
from contextlib import nullcontext
from typing import Any

from rlserve.controller.context import RunContext
from rlserve.controller.events import WorkerDied, WorkerLost
from rlserve.controller.gang_book import GangBook
from rlserve.controller.ports import Fleet, NodeSource
from rlserve.controller.replicas import Replicas
from rlserve.controller.role_changes import RoleChanges
from rlserve.controller.trainer_group import TrainerGroup
from rlserve.errors import WorkerFailedError, WorkerLostError
from rlserve.manager.gang_table import SERVING, GangState
from rlserve.manager.roles import Role
from rlserve.pool.gangs import Gang
from rlserve.tracking.events import FailureEvent

logger = logging.getLogger(__name__)


class Recovery:
    """Handles every loss of a worker. ``moving`` is held by whatever changes a role, one at a time, but for what brings
    a gang back to a role that it can join at any time: a move may have to wait until a silent worker is found."""

    def __init__(
        self,
        run: RunContext,
        book: GangBook,
        *,
        fleet: Fleet,
        trainers: TrainerGroup,
        replicas: Replicas,
        roles: RoleChanges,
        nodes: NodeSource | None,
        max_worker_failures: int,
    ) -> None:
        """``nodes`` says which nodes are there; None where there is but this machine."""
        self._run = run
        self._book = book
        self._fleet = fleet
        self._trainers = trainers
        self._replicas = replicas
        self._nodes = nodes
        self._max_worker_failures = max_worker_failures
        self._num_losses: Counter[str] = Counter()
        self._num_guarded: Counter[str] = Counter()
        """Changes of role that are under way, or wait for their turn."""
        self._tasks: set[asyncio.Task[None]] = set()
        self._repairs: dict[str, asyncio.Task[None]] = {}
        self.roles = roles
        self.moving = asyncio.Lock()
        run.events.subscribe(WorkerLost, self._note_lost)
        run.events.subscribe(WorkerDied, self._note_died)

    def come_up(self, gang: Gang, slot_ids: tuple[str, ...]) -> None:
        """The workers of a gang are up, those of ``slot_ids`` newly: it has no role."""
        for slot_id in slot_ids:
            self._book.note_worker(self._fleet.info(slot_id))
        self._book.move(gang, GangState.IDLE, "worker is up")

    async def guard(self, gang: Gang, role: Role | None, action: Coroutine[Any, Any, None]) -> None:
        """Run a change of role; if a worker of this gang fails in it, the gang is lost. ``role`` is the one that it
        has afterwards, also then."""
        num_losses = self._num_losses[gang.id]
        self._num_guarded[gang.id] += 1
        try:
            await action
        except WorkerFailedError as error:
            if self._run.counters.worker_failures > self._max_worker_failures:
                raise
            logger.warning("bringing %s to %s failed: %s", gang.id, role or "idle", error)
            if self._num_losses[gang.id] == num_losses:  # else it is known, and a new worker is on its way
                self._replicas.forget(gang.leader)
                self._lose(gang, gang.leader, role, error)
        finally:
            self._num_guarded[gang.id] -= 1

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run something in the background until :meth:`close`."""
        task = self._run.tasks.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def close(self) -> None:
        """Replace no more lost workers."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _note_died(self, event: WorkerDied) -> None:
        """Whoever changes the role of its gang hears of it there. A trainer that waits for its next step, a replica
        without work and a gang without a role are called by nobody."""
        gang = self._book.gang_of(event.slot_id)
        state = self._book.state(gang)
        if state is GangState.TRAIN:
            self.spawn(self._trainers.expel(event.slot_id, event.worker, event.error))
        elif state in SERVING:
            # Where a follower died its leader lives, and releases what it has when the gang recovers.
            is_leader = event.slot_id == gang.leader
            self._replicas.lose(gang.leader, event.error if is_leader else WorkerFailedError(str(event.error)))
        elif state is GangState.IDLE and not self._num_guarded[gang.id]:
            self._lose(gang, event.slot_id, None, event.error)

    def _note_lost(self, event: WorkerLost) -> None:
        gang = self._book.gang_of(event.slot_id)
        if event.role is Role.TRAIN and set(gang.slot_ids) & set(self._trainers.members):
            self._repair(gang, event.slot_id, event.error)
        else:
            self._lose(gang, event.slot_id, event.role, event.error)

    def _lose(self, gang: Gang, slot_id: str, role: Role | None, error: BaseException) -> None:
        """A worker of a gang died, is taken for dead, or failed, and the gang does nothing any more.

        Raises:
            WorkerFailedError: more workers were lost than pool.max_worker_failures.
        """
        if repair := self._repairs.pop(gang.id, None):
            repair.cancel()
        reason = self._end(gang, slot_id, error)
        self._book.move(gang, GangState.DEAD, reason)
        if role is Role.ROLLOUT:
            self._run.counters.engine_restarts += 1
        if len(gang.slots) == 1 or gang.id in self._book.leaving:
            self._note_failure(slot_id, reason)
        self._count(gang, slot_id, reason)
        if gang.id in self._book.leaving:
            self._book.move(gang, GangState.GONE, self._book.leaving[gang.id])
        else:
            self._book.move(gang, GangState.STARTING, "new worker")
            self.spawn(self.guard(gang, role, self._recover(gang, role, reason)))

    async def _recover(self, gang: Gang, role: Role | None, reason: str) -> None:
        replaced = await self._replaced(gang)
        if replaced is None:
            self._book.leaving[gang.id] = "its node has left the cluster"
            self._book.move(gang, GangState.DEAD, self._book.leaving[gang.id])
            self._book.move(gang, GangState.GONE, self._book.leaving[gang.id])
            return
        if len(gang.slots) > 1:  # only now is it known who was lost
            for slot_id in replaced:
                self._note_failure(slot_id, reason)
        self.come_up(gang, replaced)
        async with nullcontext() if role in self.roles.joined_at_any_time else self.moving:
            if role is not None and gang.id not in self._book.leaving:
                await self.roles.take(gang, role, "replaces a lost worker")

    async def _replaced(self, gang: Gang) -> tuple[str, ...] | None:
        """The slots of a gang that have new workers; None where its node has left."""
        if not await self._is_node_there(gang):
            return None
        try:
            return await self._fleet.recover(gang.slot_ids, on_restart=self._book.workers.restarting)
        except WorkerFailedError:
            if await self._is_node_there(gang):
                raise
            return None  # the node was lost before the cluster noticed

    def _repair(self, gang: Gang, slot_id: str, error: BaseException) -> None:
        """A worker of the last gang of trainers was lost, and the others train on: replace it beside them."""
        reason = self._end(gang, slot_id, error)
        self._note_failure(slot_id, reason)
        self._count(gang, slot_id, reason)
        if gang.id in self._book.leaving:
            return
        self._book.repairing.add(gang.id)
        self._repairs[gang.id] = self.spawn(self._replace(gang, slot_id))

    async def _replace(self, gang: Gang, slot_id: str) -> None:
        num_losses = self._num_losses[gang.id]
        try:
            await self._fleet.recover((slot_id,), on_restart=self._book.workers.restarting)
            self._book.note_worker(self._fleet.info(slot_id))
            async with self.moving:
                if self._book.state(gang) is GangState.TRAIN and gang.id not in self._book.leaving:
                    await self._trainers.add(gang.slot_ids)
                    self._book.workers.has_role(slot_id, str(GangState.TRAIN))
            self._book.repairing.discard(gang.id)
        except WorkerFailedError as error:
            if self._run.counters.worker_failures > self._max_worker_failures:
                raise
            if self._num_losses[gang.id] == num_losses:
                self._repair(gang, slot_id, error)

    def _end(self, gang: Gang, slot_id: str, error: BaseException) -> str:
        """End the worker that was lost; why it was."""
        reasons = [self._fleet.reason(each) for each in (slot_id, *gang.slot_ids)]
        reason = next((reason for reason in reasons if reason), str(error))
        if len(gang.slots) == 1 or isinstance(error, WorkerLostError):
            self._fleet.kill(slot_id)  # else its engine lost another rank, which is found when the gang recovers
            self._book.workers.ended(slot_id, reason)
        self.roles.note_lost(gang, error)
        return reason

    def _count(self, gang: Gang, slot_id: str, reason: str) -> None:
        self._num_losses[gang.id] += 1
        if gang.id in self._book.leaving:
            return  # nothing that a limit on replacements is for
        counters, limit = self._run.counters, self._max_worker_failures
        counters.worker_failures += 1
        if counters.worker_failures > limit:
            raise WorkerFailedError(
                f"{counters.worker_failures} workers were lost, more than pool.max_worker_failures={limit}; "
                f"the last on {slot_id}: {reason}"
            )

    def _note_failure(self, slot_id: str, reason: str) -> None:
        self._run.events.emit(FailureEvent(time_s=self._run.clock.now(), slot_id=slot_id, reason=reason))

    async def _is_node_there(self, gang: Gang) -> bool:
        if self._nodes is None or gang.node_id is None:
            return True
        return gang.node_id in {node.id for node in await self._nodes()}
