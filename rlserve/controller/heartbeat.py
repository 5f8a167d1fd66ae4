"""The heartbeat: finds workers that are stopped or wedged, whatever else they are doing.

::

    every interval:  each worker that is up ── ping (a thread of its own in the worker) ──► answered: asked again
                                                                                      └──► silent: one more missed

A process that died is noticed by whoever calls it. One that is stopped is not: its calls only run into their
deadlines, and those of a training step are minutes. So a worker that misses pings for the timeout is ended, and
everybody who waits for it hears of it at once. The ping needs nothing that a long call, a compilation or an engine step
holds, but Python's lock and some processor time, of which a healthy worker on an overloaded machine may get little. So
where it can be seen that a silent worker does use the processor, it is given more time. Missed rounds are counted, not
seconds: if this process itself was stopped for a while, nobody is to blame.
"""

from __future__ import annotations

import asyncio
import logging
import math
from dataclasses import dataclass
from typing import Any

from rlserve.controller.events import EventBus, WorkerNotified
from rlserve.controller.ports import Fleet
from rlserve.errors import RlserveError
from rlserve.pool.notices.base import Notice
from rlserve.remote import answer

logger = logging.getLogger(__name__)

_PATIENCE = 6
"""Timeouts for a silent worker that uses the processor: it is starved, or holds Python's lock."""


@dataclass(kw_only=True)
class _Ping:
    worker: Any
    answer: asyncio.Task[None]
    num_missed: int = 0
    """Rounds that passed without an answer."""
    num_still: int = 0
    """The last of them, in which it was not seen to use the processor either."""
    processor_s: float | None = None
    """Processor time that it had used by the last round, where that can be seen."""


class Heartbeat:
    """Asks all workers of a fleet for a sign of life."""

    def __init__(self, fleet: Fleet, events: EventBus, *, interval_s: float, timeout_s: float) -> None:
        self._fleet = fleet
        self._events = events
        self._interval_s = interval_s
        self._timeout_s = timeout_s
        self._max_missed = math.ceil(timeout_s / interval_s)
        self._pings: dict[str, _Ping] = {}

    async def run(self) -> None:
        """Ask in every interval, until cancelled."""
        while True:
            self.beat()
            await asyncio.sleep(self._interval_s)

    def beat(self) -> None:
        """One round: end whoever was silent for too long, and ask the others again."""
        for slot_id in self._fleet.ready:
            worker, ping = self._fleet[slot_id], self._pings.get(slot_id)
            if ping is None or ping.worker is not worker or ping.answer.done():
                asked = asyncio.create_task(self._ask(slot_id, worker))
                used_s = self._fleet.processor_s(slot_id)
                self._pings[slot_id] = _Ping(worker=worker, answer=asked, processor_s=used_s)
                continue
            used_s, before_s = self._fleet.processor_s(slot_id), ping.processor_s
            is_still = used_s is None or (before_s is not None and used_s <= before_s)
            ping.processor_s = used_s
            ping.num_missed += 1
            ping.num_still = ping.num_still + 1 if is_still else 0
            if ping.num_still >= self._max_missed or ping.num_missed >= _PATIENCE * self._max_missed:
                reason = f"{slot_id} gave no sign of life for pool.health_timeout_s={self._timeout_s:g} s"
                logger.warning("%s: its process is ended", reason)
                self._fleet.kill(slot_id, reason)

    async def _ask(self, slot_id: str, worker: Any) -> None:
        try:
            # The deadline only bounds the call; the rounds decide.
            notice: Notice | None = await answer(
                worker.ping.remote(),
                timeout_s=2 * _PATIENCE * self._timeout_s,
                what=f"{slot_id}, asked for a sign of life",
            )
        except RlserveError as error:
            logger.debug("%s", error)  # it died, which whoever calls it next is told
            return
        if notice is not None:
            self._events.emit(WorkerNotified(slot_id=slot_id, notice=notice))
