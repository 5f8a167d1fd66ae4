"""Gangs that leave for good: emptied within the time that a notice gives, or lost with what they have.

::

    node watch: its node is draining        ──┐
    heartbeat: a signal to a worker, a probe ─┼──► announce ──► emptied as in a move, as soon as another has its role
    notice watch: a line in the file         ─┘        │            └──► gone, no failure
                                                       ├──► not empty when its time is over ──► ended: lost, and gone
                                                       └──► fewer than two gangs stay ──► the run is asked to stop and
                                                            save: at once where none stays, else at half of the time

A notice is the same if it is repeated, and none is taken back.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable

from rlserve.controller.context import RunContext
from rlserve.controller.events import GangsRunOut, WorkerNotified
from rlserve.controller.gang_book import GangBook
from rlserve.controller.ports import Fleet
from rlserve.controller.recovery import Recovery
from rlserve.manager.gang_table import GangState
from rlserve.pool.gangs import Gang
from rlserve.pool.notices.base import Notice

logger = logging.getLogger(__name__)


class Departures:
    """Empties gangs, and gives up those that cannot be emptied in time."""

    def __init__(self, run: RunContext, book: GangBook, recovery: Recovery, fleet: Fleet, *, grace_s: float) -> None:
        """``grace_s`` is the time that a notice gives which does not say."""
        self._run = run
        self._book = book
        self._recovery = recovery
        self._fleet = fleet
        self._grace_s = grace_s
        run.events.subscribe(WorkerNotified, self._note_worker)

    def announce(self, gangs: Iterable[Gang], notice: Notice) -> None:
        """Gangs are there for the last time. May be called again and again."""
        new = [gang for gang in gangs if gang.id not in self._book.leaving]
        grace_s = self._grace_s if notice.grace_s is None else notice.grace_s
        for gang in new:
            logger.warning("%s is being emptied within %.0f s: %s", gang.id, grace_s, notice.reason)
            self._book.leaving[gang.id] = notice.reason
            self._recovery.spawn(self._empty(gang))
            self._recovery.spawn(self._expire(gang, grace_s))
        if new:
            self._run.changed.notify()
        if new and self._num_staying() < self._recovery.roles.num_gangs_needed:
            self._recovery.spawn(self._stop_in_time(grace_s / 2 if self._num_staying() else 0.0))

    def lose(self, gangs: Iterable[Gang], reason: str) -> None:
        """Gangs are lost: whoever waits for one, or calls it next, reports it, and it is gone."""
        for gang in gangs:
            self._book.leaving[gang.id] = reason
            for slot_id in gang.slot_ids:
                self._fleet.kill(slot_id, f"{slot_id}: {reason}")
            if self._book.state(gang) is GangState.IDLE:
                self._book.move(gang, GangState.GONE, reason)

    def _note_worker(self, event: WorkerNotified) -> None:
        self.announce((self._book.gang_of(event.slot_id),), event.notice)

    def _num_staying(self) -> int:
        return sum(gang.id not in self._book.leaving for gang in self._book.present)

    async def _expire(self, gang: Gang, grace_s: float) -> None:
        await asyncio.sleep(grace_s)
        if self._book.state(gang) is not GangState.GONE:
            reason = f"it was not empty {grace_s:.0f} s after a notice: {self._book.leaving[gang.id]}"
            logger.warning("%s is given up: %s", gang.id, reason)
            self.lose((gang,), reason)

    async def _stop_in_time(self, wait_s: float) -> None:
        await asyncio.sleep(wait_s)
        num_staying, num_needed = self._num_staying(), self._recovery.roles.num_gangs_needed
        if num_staying < num_needed:
            logger.warning("%d gangs stay, and a run needs %d: stopping, and saving", num_staying, num_needed)
            self._run.events.emit(GangsRunOut(num_staying=num_staying))

    async def _empty(self, gang: Gang) -> None:
        """Let a gang give up whatever role it has, as soon as another has it too; then it is gone."""

        roles = self._recovery.roles

        def may_leave() -> bool:
            return self._book.state(gang) in (GangState.IDLE, GangState.GONE) or roles.may_give_up(gang)

        while self._book.state(gang) is not GangState.GONE:
            await self._run.changed.wait_for(may_leave, f"{gang.id} to leave")
            async with self._recovery.moving:
                if may_leave() and self._book.state(gang) is not GangState.GONE:
                    await self._recovery.guard(gang, None, self._leave(gang))

    async def _leave(self, gang: Gang) -> None:
        reason = self._book.leaving[gang.id]
        if await self._recovery.roles.give_up(gang, reason):
            self._book.move(gang, GangState.GONE, reason)
            for slot_id in gang.slot_ids:
                self._fleet.kill(slot_id, reason)
            logger.info("%s is empty and leaves", gang.id)
