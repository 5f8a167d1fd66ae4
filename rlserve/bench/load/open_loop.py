"""An open loop: conversations begin at times of their own, however many are under way."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from dataclasses import dataclass

from rlserve.bench.arrivals import arrival_times
from rlserve.bench.load.base import Hold, Load
from rlserve.bench.workloads.base import Conversation


@dataclass(frozen=True, kw_only=True)
class OpenLoop(Load):
    """At ``rate`` conversations a second on average: see :func:`rlserve.bench.arrivals.arrival_times`."""

    rate: float
    burstiness: float = 1.0
    seed: int = 0

    @property
    def name(self) -> str:
        """With its rate."""
        return f"rate {self.rate:g}/s"

    @property
    def level(self) -> float:
        """The rate."""
        return self.rate

    @property
    def has_due_times(self) -> bool:
        """Each is due at its arrival."""
        return True

    async def run(self, conversations: Iterator[Conversation], hold: Hold, *, start_s: float, end_s: float) -> None:
        """Until there are none, or until ``end_s``."""
        rng = random.Random(f"{self.seed} arrivals")
        arrivals = arrival_times(self.rate, burstiness=self.burstiness, rng=rng)
        await _begin_at(zip(arrivals, conversations, strict=False), hold, start_s=start_s, end_s=end_s)


@dataclass(frozen=True)
class RecordedLoad(Load):
    """At the times that the conversations themselves have."""

    speed: float
    """That the workload's times were divided by: for the name alone."""

    @property
    def name(self) -> str:
        """With its speed."""
        return "as recorded" if self.speed == 1 else f"as recorded, {self.speed:g} times as fast"

    @property
    def level(self) -> float:
        """The speed."""
        return self.speed

    @property
    def has_due_times(self) -> bool:
        """Each is due when it was recorded."""
        return True

    async def run(self, conversations: Iterator[Conversation], hold: Hold, *, start_s: float, end_s: float) -> None:
        """Until there are none, or until ``end_s``."""
        timed = ((conversation.arrival_s or 0.0, conversation) for conversation in conversations)
        await _begin_at(timed, hold, start_s=start_s, end_s=end_s)


async def _begin_at(timed: Iterator[tuple[float, Conversation]], hold: Hold, *, start_s: float, end_s: float) -> None:
    loop = asyncio.get_running_loop()
    async with asyncio.TaskGroup() as group:
        for index, (arrival_s, conversation) in enumerate(timed):
            if start_s + arrival_s >= end_s:
                break
            await asyncio.sleep(start_s + arrival_s - loop.time())
            group.create_task(_hold(hold, index, conversation, arrival_s))


async def _hold(hold: Hold, index: int, conversation: Conversation, due_s: float) -> None:
    await hold(index, conversation, due_s)
