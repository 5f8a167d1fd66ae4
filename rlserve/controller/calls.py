"""A gang that is called to training: it generates until the trainers are about to end their step.

::

    called ──► generates … looks again whenever a step begins or ends ──► it is time ──► leaves, and joins the trainers
                  └── anything else changes hands, a gang is told to leave, a user moves gangs, the run ends
                                                                     └──► called off: it rolls out as before

One gang at a time is called. The lock of moves is free meanwhile, so nothing has to wait for the step with it. When it
is time is decided by ``rlserve.manager.leaving``.
"""

from __future__ import annotations

import contextlib
import logging
from dataclasses import dataclass

from rlserve.controller.context import RunContext
from rlserve.controller.gang_book import GangBook
from rlserve.controller.load import LoadReader
from rlserve.controller.measuring import Measuring
from rlserve.controller.trainer_group import TrainerGroup
from rlserve.manager.gang_table import GangState
from rlserve.manager.leaving import TrainersNow, expected_leave_s, leave_at_s, patience_s
from rlserve.pool.gangs import Gang

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Call:
    gang: Gang
    num_changes: int
    """Of the gang table, with that of the call itself: any other calls it off."""
    leaving: frozenset[str]
    """Gangs that were told to leave before."""


class Calls:
    """Knows which gang is called, and when it has to leave."""

    def __init__(
        self, run: RunContext, book: GangBook, *, trainers: TrainerGroup, load: LoadReader, measuring: Measuring
    ) -> None:
        self._run = run
        self._book = book
        self._trainers = trainers
        self._load = load
        self._measuring = measuring
        self._call: _Call | None = None

    @property
    def pending(self) -> bool:
        """Whether a gang is called."""
        return self._call is not None

    async def ready(self, gang: Gang, reason: str) -> bool:
        """Call a gang that rolls out, and return when it is time for it to leave; False where it was called off, or
        another is called."""
        if self._call is not None:
            return False
        self._book.move(gang, GangState.CALLED_TO_TRAIN, reason)
        call = _Call(gang=gang, num_changes=self._book.table.num_changes, leaving=frozenset(self._book.leaving))
        self._call = call
        while self._stands(call):
            leave_s, now_s = leave_at_s(self._trainers_now(), self._measuring.figures()), self._run.clock.now()
            if leave_s is not None and leave_s <= now_s:
                return True
            await self._next_stage(gang, None if leave_s is None else leave_s - now_s)
        return False

    def answered(self, gang: Gang) -> bool:
        """The gang that was called goes now; False where the call does not stand any more."""
        call = self._call
        if call is None or call.gang is not gang or not self._stands(call):
            return False
        self._call = None
        return True

    def call_off(self, reason: str) -> None:
        """The gang that is called stays where it is, if there is one."""
        call, self._call = self._call, None
        if call is not None:
            logger.info("%s is not called to training any more: %s", call.gang.id, reason)
            if self._book.state(call.gang) is GangState.CALLED_TO_TRAIN:
                self._book.move(call.gang, GangState.ROLLOUT, reason)
            self._run.changed.notify()

    def patience_s(self, left_since_s: float) -> float:
        """How long the trainers wait, from now on, for a gang that has been leaving rollout since then."""
        measured = self._measuring.figures()
        left_s = left_since_s + expected_leave_s(measured) - self._run.clock.now()
        return patience_s(self._trainers_now(), measured, left_s=left_s)

    def _stands(self, call: _Call) -> bool:
        if self._call is not call:
            return False
        if call.num_changes != self._book.table.num_changes:
            self.call_off("another gang has changed hands")
        elif not call.leaving.issuperset(self._book.leaving):
            self.call_off("a gang was told to leave")
        return self._call is call

    async def _next_stage(self, gang: Gang, longest_s: float | None) -> None:
        """Wait until anything has changed in the run, but no longer than so many seconds."""
        changed = self._run.changed
        num_changes = changed.num_changes
        with contextlib.suppress(TimeoutError):
            async with self._run.clock.timeout(longest_s):
                await changed.wait_for(lambda: changed.num_changes != num_changes, f"{gang.id} to leave for training")

    def _trainers_now(self) -> TrainersNow:
        trainers = self._trainers
        gangs = {gang.id: gang for gang in map(self._book.gang_of, trainers.members)}
        return TrainersNow(
            types=tuple(gang.slots[0].type.name for gang in gangs.values()),
            num_tokens=trainers.num_tokens,
            step_begin_s=trainers.step_begin_s,
            waiting=self._load.read().trainer_waiting,
        )
