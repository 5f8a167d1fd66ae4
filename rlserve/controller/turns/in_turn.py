"""All gangs train, then all roll out, and so on: both roles on one accelerator.

::

    turn of rollout    every gang serves while its trainer sleeps      until batches_per_turn batches are finished, and
                           │                                            it has had rollout_time_share of the time; or
                           │                                            until somebody else needs the trainers
                           ▼  requests wait with their tokens; engines free weights and KV cache; trainers wake
    turn of training   every gang trains                               until no whole batch is left
                           │
                           ▼  trainers free what they can; each engine takes the weights of the trainer beside it
    turn of rollout    …

A change of turn is asked for by whoever needs the other role, so none happens that nobody needs: steps follow each
other while there are batches, and a checkpoint that is due after a step is written in the same turn. Gangs that are
lost, join or leave do so at the begin of a turn of training or within it (``rlserve.controller.turns.roles``).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any

from rlserve.controller.context import Books, RunContext
from rlserve.controller.gang_book import GangBook
from rlserve.controller.recovery import Recovery
from rlserve.controller.turns.base import Turns
from rlserve.controller.turns.roles import RolesInTurn
from rlserve.controller.turns.trainers import TrainersInTurn
from rlserve.controller.weight_source import WeightSource
from rlserve.manager.gang_table import GangState
from rlserve.manager.roles import Role
from rlserve.pool.base import MemoryChange
from rlserve.pool.config import ColocatedConfig
from rlserve.pool.gangs import Gang
from rlserve.rollout.ledger import GroupState
from rlserve.tracking.events import TurnEvent


class InTurn(Turns):
    """Of the placement ``colocated``. A run begins with the turn of training, in which the first group is formed."""

    def __init__(
        self,
        run: RunContext,
        book: GangBook,
        recovery: Recovery,
        roles: RolesInTurn,
        *,
        trainers: TrainersInTurn,
        weights: WeightSource,
        books: Books,
        config: ColocatedConfig,
    ) -> None:
        self._run = run
        self._book = book
        self._recovery = recovery
        self._roles = roles
        self._trainers = trainers
        self._weights = weights
        self._config = config
        self._books = books
        self._training_begin_s = self._rollout_until_s = 0.0
        """When the newest turn of training began, and until when rollout has its share of the time."""
        self._metrics: dict[str, float] = {}

    def is_ripe(self, num_steps_left: int) -> bool:
        if self._roles.turn is Role.TRAIN:
            return True
        num_batches = self._books.buffer.num_batches
        if num_batches >= num_steps_left:
            return True  # what is still generated is surplus
        if num_batches < self._config.batches_per_turn:
            return False
        ledger = self._books.ledger
        is_generating = ledger.count(GroupState.PENDING) + ledger.count(GroupState.RUNNING) > 0
        return not is_generating or self._run.clock.now() >= self._rollout_until_s

    def metrics(self) -> Mapping[str, float]:
        return self._metrics

    async def begin_training(self) -> None:
        if self._roles.turn is Role.TRAIN:
            return
        begin_s, changes = self._run.clock.now(), list[MemoryChange]()

        async def stop(gang: Gang) -> None:
            changes.append(await self._roles.stop_serving(gang))

        async with self._recovery.moving:
            await self._change_all(self._gangs(GangState.ROLLOUT), Role.TRAIN, stop)
            await self._trainers.wake()
            self._roles.turn = Role.TRAIN
            for gang in self._gangs(GangState.JOINING_TRAIN):
                self._book.move(gang, GangState.TRAIN, "turn of training")
            for gang in self._gangs(GangState.IDLE):
                if gang.id not in self._book.leaving:
                    join = self._roles.take(gang, Role.TRAIN, "takes part from this turn on")
                    await self._recovery.guard(gang, Role.TRAIN, join)
        self._training_begin_s = self._run.clock.now()
        self._note(Role.TRAIN, begin_s, changes)

    async def begin_rollout(self) -> None:
        if self._roles.turn is Role.ROLLOUT:
            return
        begin_s = self._run.clock.now()
        async with self._recovery.moving:
            await self._weights.settled()
            for gang in self._gangs(GangState.TRAIN):
                self._book.move(gang, GangState.LEAVING_TRAIN, "turn of rollout")
            changes = await self._trainers.sleep()
            self._roles.turn = Role.ROLLOUT
            await self._change_all(self._gangs(GangState.LEAVING_TRAIN), Role.ROLLOUT, self._roles.serve)
        self._note(Role.ROLLOUT, begin_s, changes)
        share = self._config.rollout_time_share
        if share and self._run.counters.num_steps:
            wait_s = (begin_s - self._training_begin_s) * share / (1 - share)
            self._rollout_until_s = self._run.clock.now() + wait_s
            self._recovery.spawn(self._tell_after(wait_s))

    async def _change_all(
        self, gangs: Sequence[Gang], to: Role, change: Callable[[Gang], Coroutine[Any, Any, None]]
    ) -> None:
        """All at once; a gang that is lost in it is recovered, and whatever else fails ends the others."""
        async with asyncio.TaskGroup() as tasks:
            for gang in gangs:
                tasks.create_task(self._recovery.guard(gang, to, change(gang)))

    async def _tell_after(self, wait_s: float) -> None:
        """Let whoever waits for ``is_ripe`` ask again."""
        await self._run.clock.sleep(wait_s)
        self._run.changed.notify()

    def _gangs(self, state: GangState) -> list[Gang]:
        return [self._book[gang_id] for gang_id in self._book.table.in_state(state)]

    def _note(self, to: Role, begin_s: float, changes: Sequence[MemoryChange]) -> None:
        now, released_bytes = self._run.clock.now(), sum(change.released_bytes for change in changes)
        kept_bytes = sum(change.after_bytes for change in changes)
        self._run.events.emit(
            TurnEvent(time_s=now, to=to.value, begin_s=begin_s, released_bytes=released_bytes, kept_bytes=kept_bytes)
        )
        role = "trainer" if to is Role.ROLLOUT else "engine"
        self._metrics |= {
            "pool/turn_to_rollout_s" if to is Role.ROLLOUT else "pool/turn_to_train_s": now - begin_s,
            f"pool/{role}_released_bytes": released_bytes,
            f"pool/{role}_kept_bytes": kept_bytes,
        }
