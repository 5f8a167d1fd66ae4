"""What a signal does to a run, from the first second to the last.

::

    before training    the first unwinds the run (StopRequested): nothing is new, so nothing is saved
    while it trains    the first asks the controller to finish the step under way and save
    any later one      ends the process and all that it started at once

INT, TERM, HUP (a closed terminal), USR1 and USR2 (a batch system's warning) all mean the same. A HUP that is ignored
already stays so: nohup starts a process that outlives its terminal.
"""

from __future__ import annotations

import ctypes
import logging
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from rlserve.processes import descendants, end_all

logger = logging.getLogger(__name__)

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
_SIGACTION_BYTES = 512
"""More than the structure has on any platform."""


class StopRequested(KeyboardInterrupt):
    """A signal asked for the end before training began."""

    def __init__(self, number: signal.Signals) -> None:
        super().__init__(number)
        self.number = number


class StopSignals:
    """Receives the signals of a run while used as a context."""

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._request: Callable[[], object] | None = None
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopSignals:
        is_nohup = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        wanted = [number for number in STOP_SIGNALS if not (is_nohup and number is signal.SIGHUP)]
        self._before = {number: signal.signal(number, self._receive) for number in wanted}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @contextmanager
    def handed_to(self, request: Callable[[], object]) -> Iterator[None]:
        """While it lasts, the first signal calls ``request``, which must be safe in a signal handler."""
        self._request = request
        try:
            yield
        finally:
            self._request = None

    def _receive(self, number: int, _: FrameType | None) -> None:
        if self.received is not None:
            _end_at_once(signal.Signals(number))
        self.received = signal.Signals(number)
        if self._request is None:
            raise StopRequested(self.received)
        logger.info("%s: finishing the step under way, then saving (again to end at once)", self.received.name)
        self._request()


def exit_code(number: signal.Signals) -> int:
    """Of a process that a signal ended, as shells count it."""
    return 128 + number


@contextmanager
def terminate_signal_kept() -> Iterator[None]:
    """Keep the handler of SIGTERM, which Ray's core takes for a crash and replaces where Python does not see it.

    May be used in any thread, which Python's own ``signal`` may not.
    """
    library, kept = ctypes.CDLL(None), ctypes.create_string_buffer(_SIGACTION_BYTES)
    library.sigaction(int(signal.SIGTERM), None, kept)
    try:
        yield
    finally:
        library.sigaction(int(signal.SIGTERM), kept, None)


def _end_at_once(number: signal.Signals) -> None:
    logger.warning("%s: ending at once", number.name)
    end_all(descendants())
    os._exit(exit_code(number))
