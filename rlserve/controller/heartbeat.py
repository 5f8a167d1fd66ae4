"""The heartbeat: finds workers that are stopped or wedged, whatever else they are doing.

::

    every interval:  each worker that is up ── ping (a thread of its own in the worker) ──► answered: asked again
                                                                                      └──► silent: one more missed

A process that died is noticed by whoever calls it. One that is stopped is not: its calls only run into their
deadlines, and those of a training step are minutes. So a worker that misses pings for the timeout is ended, and
everybody who waits for it hears of it at once. The ping needs nothing that a long call, a compilation or an engine step
holds. Missed rounds are counted, not seconds: if this process itself was stopped for a while, nobody is to blame.
"""

from __future__ import annotations

import asyncio
import logging
import math
from dataclasses import dataclass
from typing import Any

from rlserve.errors import RlserveError
from rlserve.pool.fleet import Fleet
from rlserve.remote import answer

logger = logging.getLogger(__name__)


@dataclass(kw_only=True)
class _Ping:
    worker: Any
    answer: asyncio.Task[None]
    num_missed: int = 0
    """Rounds that passed without an answer."""


class Heartbeat:
    """Asks all workers of a fleet for a sign of life."""

    def __init__(self, fleet: Fleet, *, interval_s: float, timeout_s: float) -> None:
        self._fleet = fleet
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
                self._pings[slot_id] = _Ping(worker=worker, answer=asyncio.create_task(self._ask(slot_id, worker)))
                continue
            ping.num_missed += 1
            if ping.num_missed >= self._max_missed:
                reason = f"{slot_id} gave no sign of life for pool.health_timeout_s={self._timeout_s:g} s"
                logger.warning("%s: its process is ended", reason)
                self._fleet.kill(slot_id, reason)

    async def _ask(self, slot_id: str, worker: Any) -> None:
        try:
            # The deadline only bounds the call; the rounds decide.
            await answer(
                worker.ping.remote(), timeout_s=10 * self._timeout_s, what=f"{slot_id}, asked for a sign of life"
            )
        except RlserveError as error:
            logger.debug("%s", error)  # it died, which whoever calls it next is told
