"""Notices that reach a worker process: a signal to it, or what its machine's cloud says.

::

    SIGTERM, SIGUSR1 ──┐
    probe, in a thread ┴──► the first is kept ──► told with every sign of life

Neither ends the process: the controller empties its gang, and then ends it.
"""

from __future__ import annotations

import logging
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

from rlserve.errors import PoolError
from rlserve.pool.notices.base import Notice

logger = logging.getLogger(__name__)

NOTICE_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
PROBE_INTERVAL_S = 5.0

Probe = Callable[[], float | None]
"""Seconds until this machine is taken away; None while nobody has said so."""


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


def find_probe(name: str) -> Probe:
    """Import ``path/to/file.py:function`` or ``package.module:function``.

    Raises:
        PoolError: there is no such function.
    """
    location, _, attribute = name.rpartition(":")
    try:
        module = _import_file(Path(location)) if location.endswith(".py") else import_module(location)
        probe = getattr(module, attribute)
    except (ImportError, OSError, ValueError, AttributeError) as error:
        raise PoolError(
            f"pool.notice_probe={name}: {error}; must be path/to/file.py:function or package.module:function"
        ) from error
    if not callable(probe):
        raise PoolError(f"pool.notice_probe={name}: {attribute!r} is not a function")
    return probe  # type: ignore[no-any-return]


def _import_file(path: Path) -> Any:
    spec = spec_from_file_location(f"rlserve_probe_{path.stem}", path)
    assert spec is not None, f"{path} ends in .py"
    assert spec.loader is not None
    module = sys.modules[spec.name] = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
