"""Waiting for a condition among the loops of one event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from rlserve.errors import DeadlineExceededError


class Signal:
    """Wakes everyone who waits whenever something changed; each looks again whether it may go on."""

    def __init__(
        self,
        timeout_s: float,
        *,
        moved: Callable[[], object] = lambda: None,
        situation: Callable[[], str] = lambda: "nothing changed",
    ) -> None:
        """A wait may last as long as something moves: either somebody notifies, or ``moved`` returns something new
        after ``timeout_s``. ``situation`` says who owes what, for the message of a wait that may not."""
        self._timeout_s = timeout_s
        self._moved = moved
        self._situation = situation
        self._event = asyncio.Event()

    def notify(self) -> None:
        """Something changed."""
        self._event.set()
        self._event = asyncio.Event()

    async def wait_for(self, condition: Callable[[], bool], what: str) -> None:
        """Return as soon as ``condition`` holds, which ``what`` names.

        Raises:
            DeadlineExceededError: nothing moved for the timeout.
        """
        before = self._moved()
        while not condition():
            try:
                async with asyncio.timeout(self._timeout_s):
                    await self._event.wait()
            except TimeoutError:
                before, last = self._moved(), before
                if before == last:
                    raise DeadlineExceededError(
                        f"waiting for {what}, and nothing moved for {self._timeout_s:g} s: {self._situation()}"
                    ) from None
