"""The run's one clock."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable


class RunClock:
    """Seconds that the run has been going; a resumed run goes on from where it stopped. Of a paced run they are the
    seconds of the accelerators that it models, from when its workers are there.

    Waiting goes through the event loop, whose own time is the same monotonic clock. A loop of virtual time hands over
    its ``time`` as ``read``, and then clock and waits agree there too.
    """

    def __init__(self, *, started: float, already_s: float = 0.0, read: Callable[[], float] = time.monotonic) -> None:
        """``started`` is what ``read`` gave when this process began the run."""
        self._since, self._before_s = started, already_s
        self._dilation = 1.0
        self._read = read

    def now(self) -> float:
        """Seconds since the run began; of the modelled accelerators once the run is dilated."""
        return self._before_s + (self._read() - self._since) / self._dilation

    def real_s(self) -> float:
        """Seconds of this machine, for deadlines of processes; only differences mean something."""
        return self._read()

    def dilate(self, dilation: float) -> None:
        """From now on a second of the run takes this many of this machine."""
        self._before_s, self._since = self.now(), self._read()
        self._dilation = dilation

    def timeout(self, duration_s: float | None) -> asyncio.Timeout:
        """A context that ends after so many seconds of the run, with a ``TimeoutError``; never, if None."""
        return asyncio.timeout(None if duration_s is None else duration_s * self._dilation)

    async def sleep(self, duration_s: float) -> None:
        """Wait for seconds of the run."""
        await asyncio.sleep(duration_s * self._dilation)
