"""The heartbeat: finds workers that have died, are stopped or are wedged, whatever else they are doing.

::

    each worker that is up ── asked for a sign of life ──► answers after an interval ──► asked again
                                  └──► its process died: known at once
    every interval, a look at each ──► silent, or at a standstill, for the timeout ──► its process is ended

A call to each worker is always under way, so one that dies is found at once, also where nobody else waits for it. One
that is stopped breaks no call: its calls only run into their deadlines, and those of a training step are minutes. So a
worker that stands still for the timeout (``rlserve.controller.silence``) is ended, and everybody who waits for it hears
of it at once. Answers come from a thread that nothing else uses, and need nothing that a long call, a compilation or a
step of the engine holds, but Python's lock and some processor time. Rounds are counted, not seconds: if this process
itself was stopped for a while, nobody is to blame.
"""

from __future__ import annotations

import asyncio
import logging
import math
from dataclasses import dataclass, field
from typing import Any

from rlserve.controller.events import EventBus, WorkerDied, WorkerNotified
from rlserve.controller.ports import Fleet
from rlserve.controller.silence import PATIENCE, Look, Silence
from rlserve.controller.worker_book import WorkerBook
from rlserve.errors import RlserveError, WorkerLostError
from rlserve.pool.base import SignOfLife
from rlserve.remote import answer

logger = logging.getLogger(__name__)


@dataclass(kw_only=True)
class _Watch:
    """Of one worker."""

    worker: Any
    listening: asyncio.Task[None]
    sign: SignOfLife | None = None
    """The newest of this round."""
    silence: Silence = field(default_factory=Silence)


class Heartbeat:
    """Asks all workers of a fleet for signs of life."""

    def __init__(
        self, fleet: Fleet, workers: WorkerBook, events: EventBus, *, interval_s: float, timeout_s: float
    ) -> None:
        self._fleet = fleet
        self._workers = workers
        self._events = events
        self._interval_s = interval_s
        self._timeout_s = timeout_s
        self._max_rounds = math.ceil(timeout_s / interval_s)
        self._watches: dict[str, _Watch] = {}

    async def run(self) -> None:
        """Look in every interval, until cancelled."""
        try:
            while True:
                self.look()
                await asyncio.sleep(self._interval_s)
        finally:
            for watch in self._watches.values():
                watch.listening.cancel()

    def look(self) -> None:
        """One round: end whoever stood still for too long, and watch over workers that are new."""
        ready = self._fleet.ready
        for slot_id in [slot_id for slot_id in self._watches if slot_id not in ready]:
            self._watches.pop(slot_id).listening.cancel()
        for slot_id in ready:
            watch = self._watches.get(slot_id)
            if watch is None or watch.worker is not self._fleet[slot_id]:
                self._begin(slot_id)
            else:
                self._judge(slot_id, watch)

    def _begin(self, slot_id: str) -> None:
        before, worker = self._watches.get(slot_id), self._fleet[slot_id]
        if before is not None:
            before.listening.cancel()
        self._watches[slot_id] = _Watch(
            worker=worker,
            listening=asyncio.create_task(self._listen(slot_id, worker)),
            silence=Silence(processor_s=self._fleet.processor_s(slot_id)),
        )

    def _judge(self, slot_id: str, watch: _Watch) -> None:
        sign, watch.sign = watch.sign, None
        may_be_still = sign is None or sign.is_computing
        look = Look(
            was_heard=sign is not None,
            is_computing=sign is not None and sign.is_computing,
            processor_s=self._fleet.processor_s(slot_id),
            is_ready_to_run=may_be_still and self._fleet.is_ready_to_run(slot_id),
            is_stopped=sign is None and self._fleet.is_stopped(slot_id),
        )
        watch.silence = watch.silence.after(look, interval_s=self._interval_s)
        what, for_s = "gives no sign of life", f"pool.health_timeout_s={self._timeout_s:g}"
        if look.was_heard:
            what = "computes without using the processor"
        elif watch.silence.num_stopped:
            what, for_s = "is stopped by a signal", f"{watch.silence.num_stopped * self._interval_s:g}"
        if watch.silence.is_over(self._max_rounds):
            reason = f"{slot_id} {what} for {for_s} s"
            logger.warning("%s: its process is ended", reason)
            self._fleet.kill(slot_id, reason)
            self._note_dead(slot_id, watch.worker, WorkerLostError(reason))
        elif watch.silence.is_suspect(self._max_rounds):
            self._workers.suspected(slot_id, what)
        elif look.was_heard:
            self._workers.heard(slot_id)

    async def _listen(self, slot_id: str, worker: Any) -> None:
        """Ask again and again, until the worker is gone."""
        while True:
            try:
                # The deadline only bounds the call; the rounds decide.
                sign: SignOfLife = await answer(
                    worker.sign_of_life.remote(self._interval_s),
                    timeout_s=self._interval_s + 2 * PATIENCE * self._timeout_s,
                    what=f"{slot_id}, asked for a sign of life",
                )
            except WorkerLostError as error:
                if slot_id in self._fleet.ready and self._fleet[slot_id] is worker:
                    logger.warning("%s", error)
                    self._fleet.kill(slot_id, str(error))
                    self._note_dead(slot_id, worker, error)
                return
            except RlserveError as error:
                logger.warning("%s", error)  # what it raised is no sign of life either
                await asyncio.sleep(self._interval_s)
                continue
            self._watches[slot_id].sign = sign
            if sign.notice is not None:
                self._events.emit(WorkerNotified(slot_id=slot_id, notice=sign.notice))

    def _note_dead(self, slot_id: str, worker: Any, error: WorkerLostError) -> None:
        self._workers.ended(slot_id, str(error))
        self._events.emit(WorkerDied(slot_id=slot_id, worker=worker, error=error))
