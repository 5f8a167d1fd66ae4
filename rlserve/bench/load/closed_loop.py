"""A closed loop: as many conversations as ``concurrency`` at any time; where one ends, the next begins."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass

from rlserve.bench.load.base import Hold, Load
from rlserve.bench.workloads.base import Conversation


@dataclass(frozen=True)
class ClosedLoop(Load):
    """The server sets the pace."""

    concurrency: int

    @property
    def name(self) -> str:
        """With its concurrency."""
        return f"concurrency {self.concurrency}"

    @property
    def level(self) -> float:
        """The concurrency."""
        return self.concurrency

    @property
    def has_due_times(self) -> bool:
        """Each begins when another has ended."""
        return False

    async def run(self, conversations: Iterator[Conversation], hold: Hold, *, start_s: float, end_s: float) -> None:
        """Until there are none, or until ``end_s``."""
        loop, numbered = asyncio.get_running_loop(), enumerate(conversations)

        async def hold_one_after_the_other() -> None:
            while (now_s := loop.time()) < end_s and (following := next(numbered, None)) is not None:
                await hold(*following, now_s - start_s)

        async with asyncio.TaskGroup() as group:
            for _ in range(self.concurrency):
                group.create_task(hold_one_after_the_other())
