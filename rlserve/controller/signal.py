"""Waiting for a condition among the loops of one event loop."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable


class Signal:
    """Wakes everyone who waits whenever something changed; each looks again whether it may go on.

    A wait has no deadline of its own: :class:`rlserve.controller.stall.StallGuard` watches over all of them together.
    """

    def __init__(self) -> None:
        self._event = asyncio.Event()
        self._waiting: Counter[str] = Counter()
        self._num_changes = 0

    @property
    def waiting(self) -> tuple[str, ...]:
        """What is waited for now."""
        return tuple(self._waiting)

    @property
    def num_changes(self) -> int:
        """How often something changed."""
        return self._num_changes

    def notify(self) -> None:
        """Something changed."""
        self._num_changes += 1
        self._event.set()
        self._event = asyncio.Event()

    async def wait_for(self, condition: Callable[[], bool], what: str) -> None:
        """Return as soon as ``condition`` holds, which ``what`` names."""
        if condition():
            return
        self._waiting[what] += 1
        try:
            while True:
                await self._event.wait()
                if condition():
                    return
        finally:
            self._waiting -= Counter((what,))
