"""Other work on this machine, as much as one likes."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

_FOREVER = "while True: pass"


@contextmanager
def busy_processes(number: int) -> Iterator[None]:
    """So many processes that compute all the time, each of a session of its own, as of as many other users: Linux may
    share processors out among sessions."""
    command = [sys.executable, "-S", "-E", "-c", _FOREVER]
    processes = [subprocess.Popen(command, start_new_session=True) for _ in range(number)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()
