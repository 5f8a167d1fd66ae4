"""The border between two training steps, which one at a time may hold; and how long training stood still at it.

::

    training     ── step ──┤ waits ├── step ── …          the wait counts where a change holds the boundary,
    a change            ├─ held ─┤                         and only from when training was ready to go on
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from rlserve.controller.clock import RunClock


class StepBoundary:
    """A lock that tells what its holders cost the training."""

    def __init__(self, clock: RunClock) -> None:
        self._clock = clock
        self._lock = asyncio.Lock()
        self._num_ready = 0
        self._ready_s = 0.0
        self.pause_s = 0.0
        """Seconds that training was ready and a change was under way, since the run began."""

    @asynccontextmanager
    async def training(self) -> AsyncIterator[None]:
        """Held by what a training step needs: the step itself, the copy of its weights, a checkpoint."""
        if not self._num_ready:
            self._ready_s = self._clock.now()
        self._num_ready += 1
        try:
            await self._lock.acquire()
        finally:
            self._num_ready -= 1
        try:
            yield
        finally:
            self._lock.release()

    @asynccontextmanager
    async def change(self) -> AsyncIterator[None]:
        """Held by what changes the group of trainers."""
        async with self._lock:
            begin_s = self._clock.now()
            try:
                yield
            finally:
                if self._num_ready:
                    self.pause_s += self._clock.now() - max(begin_s, self._ready_s)
