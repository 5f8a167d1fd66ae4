"""The run's one clock."""

from __future__ import annotations

import time
from collections.abc import Callable


class RunClock:
    """Seconds that the run has been going; a resumed run goes on from where it stopped.

    Waiting goes through the event loop, whose own time is the same monotonic clock. A loop of virtual time hands over
    its ``time`` as ``read``, and then clock and waits agree there too.
    """

    def __init__(self, *, started: float, already_s: float = 0.0, read: Callable[[], float] = time.monotonic) -> None:
        """``started`` is what ``read`` gave when this process began the run."""
        self._zero = started - already_s
        self._read = read

    def now(self) -> float:
        """Seconds since the run began."""
        return self._read() - self._zero
