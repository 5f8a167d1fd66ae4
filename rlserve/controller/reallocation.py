"""Moving slots between training and rollout: observe, decide, act.

::

    every manager.interval_s:   observe ──► policy.decide (pure) ──► record ──► act, one legal move at a time

    train → rollout   (step boundary) trainers re-form without the slot ─► it takes the newest weights ─► it serves
    rollout → train   the slot serves no more, its requests move on ─► its engine's memory is freed ─► it joins the
                      trainers (step boundary)

A slot has exactly one owner at every moment (``rlserve.manager.slot_table``). A worker that fails in the middle of a
move is ended and its slot is dead; a dead slot gets a new worker, which takes up the role the slot had or was
going to have. There is one move, or one joining of a new worker, at a time.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass
from typing import Any

from rlserve.config.pool_split import slot_view
from rlserve.controller.context import RunContext
from rlserve.controller.events import WorkerLost
from rlserve.controller.load import LoadReader
from rlserve.controller.ports import Fleet
from rlserve.controller.replicas import Replicas
from rlserve.controller.trainer_group import TrainerGroup
from rlserve.errors import WorkerFailedError
from rlserve.manager.policies.base import Observation, Plan, Policy, Role
from rlserve.manager.slot_table import SlotState, SlotTable
from rlserve.pool.slots import Slot
from rlserve.tracking.events import Decision, FailureEvent, Owner, SlotEvent, WorkerEvent

logger = logging.getLogger(__name__)

_OWNERS: dict[SlotState, Owner] = {SlotState.TRAIN: "train", SlotState.ROLLOUT: "rollout", SlotState.DEAD: "dead"}


@dataclass(frozen=True, kw_only=True)
class ReallocationLimits:
    """How often slots may move, and how many workers may be lost."""

    interval_s: float
    max_worker_failures: int


class Reallocation:
    """Carries out the policy's plans and replaces lost workers."""

    def __init__(
        self,
        run: RunContext,
        slots: Sequence[Slot],
        *,
        fleet: Fleet,
        trainers: TrainerGroup,
        replicas: Replicas,
        policy: Policy[Any],
        load: LoadReader,
        limits: ReallocationLimits,
    ) -> None:
        self._run = run
        self._slots = {slot.id: slot for slot in slots}
        self._fleet = fleet
        self._trainers = trainers
        self._replicas = replicas
        self._policy = policy
        self._policy_state = policy.initial_state()
        self._load = load
        self._limits = limits
        self._moving = asyncio.Lock()
        self._last_move_end_s: float | None = None
        self._settled = False
        self._num_losses: Counter[str] = Counter()
        self._revivals: set[asyncio.Task[None]] = set()
        self.move_s = 0.0
        self.table = SlotTable()
        for slot in slots:
            self.table.add(slot.id, time_s=run.clock.now())
            self._record(slot.id)
        run.events.subscribe(WorkerLost, self._note_lost)

    async def run(self) -> None:
        """Decide and act until cancelled."""
        while not self._settled:
            await asyncio.sleep(self._limits.interval_s)
            self.table.check_integrity()
            observation = self.observe()
            plan, self._policy_state = self._policy.decide(observation, self._policy_state)
            self._record_decision(observation, plan)
            for move in plan.moves:
                await self._move(move.slot_id, move.to)

    def observe(self) -> Observation:
        """Read everything that the policy looks at, once."""
        load = self._load.read()
        roles = {SlotState.TRAIN: Role.TRAIN, SlotState.ROLLOUT: Role.ROLLOUT}
        return Observation(
            time_s=self._run.clock.now(),
            queue_length=load.num_waiting,
            num_buffered=load.num_buffered,
            num_in_flight=load.num_in_flight,
            trainer_waiting=load.trainer_waiting,
            slots=tuple(
                slot_view(
                    slot,
                    role=roles.get(self.table.state(slot.id)),
                    alive=self.table.state(slot.id) is not SlotState.DEAD,
                )
                for slot in self._slots.values()
            ),
            legal_trainer_sizes=tuple(range(1, len(self._slots))),
            moving=self._moving.locked(),
            last_move_end_s=self._last_move_end_s,
        )

    async def begin(self, slot_id: str, role: Role) -> None:
        """First role of a slot whose worker has come up; trainers of the first group have joined already."""
        self._came_up(slot_id)
        if role is Role.TRAIN:
            self._to(slot_id, SlotState.JOINING_TRAIN, "initial split")
            self._to(slot_id, SlotState.TRAIN, "initial split")
        else:
            await self._guarded(slot_id, role, self._join(slot_id, role, "initial split"))

    def _note_lost(self, event: WorkerLost) -> None:
        self._lost(event.slot_id, event.role, event.error)

    def _lost(self, slot_id: str, role: Role, error: BaseException) -> None:
        """A worker died or is taken for dead: end it, note it, and start a new one for the same role.

        Raises:
            WorkerFailedError: more workers were lost than pool.max_worker_failures.
        """
        self._fleet.kill(slot_id)
        reason = self._fleet.reason(slot_id) or str(error)
        self._to(slot_id, SlotState.DEAD, reason)
        self._num_losses[slot_id] += 1
        self._run.counters.worker_failures += 1
        if role is Role.ROLLOUT:
            self._run.counters.engine_restarts += 1
        self._run.events.emit(FailureEvent(time_s=self._run.clock.now(), slot_id=slot_id, reason=reason))
        if self._run.counters.worker_failures > self._limits.max_worker_failures:
            raise WorkerFailedError(
                f"{self._run.counters.worker_failures} workers were lost, more than "
                f"pool.max_worker_failures={self._limits.max_worker_failures}; the last on {slot_id}: {reason}"
            )
        revival = self._run.tasks.create_task(self._revive(slot_id, role))
        self._revivals.add(revival)
        revival.add_done_callback(self._revivals.discard)

    async def settle(self) -> None:
        """Wait until no move is under way, and let none begin. Lost workers are still replaced."""
        self._settled = True
        async with self._moving:
            pass

    async def close(self) -> None:
        """Replace no more lost workers."""
        revivals = list(self._revivals)
        for revival in revivals:
            revival.cancel()
        await asyncio.gather(*revivals, return_exceptions=True)

    async def _revive(self, slot_id: str, role: Role) -> None:
        async def join() -> None:
            await self._fleet.restart(slot_id)
            self._came_up(slot_id)
            async with self._moving:
                await self._join(slot_id, role, "replaces a lost worker")

        self._to(slot_id, SlotState.STARTING, "new worker")
        await self._guarded(slot_id, role, join())

    async def _move(self, slot_id: str, role: Role) -> None:
        async with self._moving:
            start = self._run.clock.now()
            before = SlotState.ROLLOUT if role is Role.TRAIN else SlotState.TRAIN
            if self._settled or self.table.state(slot_id) is not before:
                return  # the run is about to end, or the slot was lost since the decision
            await self._guarded(slot_id, role, self._change_role(slot_id, role))
            self.move_s = self._run.clock.now() - start
            logger.info("%s is %s after %.2f s", slot_id, self.table.state(slot_id), self.move_s)
            self._last_move_end_s = self._run.clock.now()

    async def _change_role(self, slot_id: str, role: Role) -> None:
        if role is Role.ROLLOUT:
            if not await self._trainers.remove(
                slot_id, on_leaving=lambda: self._to(slot_id, SlotState.LEAVING_TRAIN, "queue")
            ):
                logger.info("%s stays a trainer: trainers were lost, and it is the last", slot_id)
                return
            self._to(slot_id, SlotState.IDLE, "left the trainers")
        else:
            self._to(slot_id, SlotState.LEAVING_ROLLOUT, "queue")
            await self._replicas.leave(slot_id)
            self._to(slot_id, SlotState.IDLE, "serves no more")
        await self._join(slot_id, role, "queue")
        if role is Role.ROLLOUT:
            self._run.counters.moves_to_rollout += 1
        else:
            self._run.counters.moves_to_train += 1

    async def _join(self, slot_id: str, role: Role, reason: str) -> None:
        if role is Role.ROLLOUT:
            self._to(slot_id, SlotState.JOINING_ROLLOUT, reason)
            await self._replicas.join(slot_id)
            self._to(slot_id, SlotState.ROLLOUT, reason)
        else:
            self._to(slot_id, SlotState.JOINING_TRAIN, reason)
            await self._trainers.add(slot_id)
            self._to(slot_id, SlotState.TRAIN, reason)

    async def _guarded(self, slot_id: str, role: Role, action: Coroutine[Any, Any, None]) -> None:
        """Run a change of role; if this slot's worker fails in it, the worker is lost."""
        num_losses = self._num_losses[slot_id]
        try:
            await action
        except WorkerFailedError as error:
            if self._run.counters.worker_failures > self._limits.max_worker_failures:
                raise
            logger.warning("bringing %s to %s failed: %s", slot_id, role, error)
            if self._num_losses[slot_id] == num_losses:  # else it is known, and a new worker is on its way
                self._replicas.forget(slot_id)
                self._lost(slot_id, role, error)

    def _came_up(self, slot_id: str) -> None:
        info = self._fleet.info(slot_id)
        self._run.events.emit(
            WorkerEvent(time_s=self._run.clock.now(), slot_id=slot_id, process_id=info.process_id, host=info.host)
        )
        self._to(slot_id, SlotState.IDLE, "worker is up")

    def _to(self, slot_id: str, state: SlotState, reason: str) -> None:
        self.table.move(slot_id, state, time_s=self._run.clock.now(), reason=reason)
        self._record(slot_id)
        self._run.changed.notify()

    def _record(self, slot_id: str) -> None:
        owner = _OWNERS.get(self.table.state(slot_id), "moving")
        self._run.events.emit(
            SlotEvent(
                time_s=self._run.clock.now(), slot_id=slot_id, slot_type=self._slots[slot_id].type.name, owner=owner
            )
        )

    def _record_decision(self, observation: Observation, plan: Plan) -> None:
        move = plan.moves[0] if plan.moves else None
        if move is not None:
            logger.info("manager: %s to %s (%s)", move.slot_id, move.to, plan.reason)
        self._run.events.emit(
            Decision(
                time_s=observation.time_s,
                step=self._run.counters.num_steps,
                action="hold" if move is None else "to_rollout" if move.to is Role.ROLLOUT else "to_train",
                slot_id=None if move is None else move.slot_id,
                queue_length=observation.queue_length,
                num_train=self.table.count(SlotState.TRAIN),
                num_rollout=self.table.count(SlotState.ROLLOUT),
                reason=plan.reason,
                numbers=plan.numbers,
            )
        )
