"""Notices that reach a worker process: a signal to it, or what its machine's cloud says.

::

    SIGTERM, SIGUSR1 ──┐
    probe, in a thread ┴──► the first is kept ──► told with every sign of life

Neither ends the process: the controller empties its gang, and then ends it.
"""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import replace

from rlserve.pool.notices.base import Notice
from rlserve.pool.notices.probes.base import Probe

logger = logging.getLogger(__name__)

NOTICE_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
PROBE_INTERVAL_S = 1.0


class WorkerNotices:
    """Keeps the first notice that comes."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._notice: Notice | None = None
        self._given_s = 0.0

    def newest(self) -> Notice | None:
        """The notice with the time that is left now; None where there is none."""
        notice = self._notice
        if notice is None or notice.grace_s is None:
            return notice
        return replace(notice, grace_s=max(notice.grace_s - (self._clock() - self._given_s), 0.0))

    def give(self, notice: Notice) -> None:
        """Note that the slot will be taken away."""
        if self._notice is None:
            self._given_s = self._clock()
            self._notice = notice

    def receive_signals(self) -> None:
        """From now on the signals of a scheduler are notices. Only the main thread may call this."""
        for number in NOTICE_SIGNALS:
            signal.signal(number, lambda received, _: self._note_signal(received))

    def poll(self, probe: Probe, *, wait: Callable[[], object] = lambda: time.sleep(PROBE_INTERVAL_S)) -> None:
        """Ask ``probe`` until it gives notice; one that fails is asked again."""
        has_failed = False
        while self._notice is None:
            try:
                grace_s = probe()
            except Exception as error:  # the user's function may raise anything
                if not has_failed:
                    logger.warning("pool.notice_probe failed, and is asked again: %s: %s", type(error).__name__, error)
                has_failed, grace_s = True, None
            if grace_s is not None:
                self.give(Notice(reason="pool.notice_probe says that its machine will be taken away", grace_s=grace_s))
                return
            wait()

    def poll_in_background(self, probe: Probe) -> None:
        """The same in a thread."""
        threading.Thread(target=self.poll, args=(probe,), name="notice probe", daemon=True).start()

    def _note_signal(self, number: int) -> None:
        self.give(Notice(reason=f"its process was sent {signal.Signals(number).name}"))
