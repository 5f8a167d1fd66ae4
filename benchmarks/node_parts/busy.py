"""Other work on this machine, as much as one likes."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

_FOREVER = "while True: pass"


@contextmanager
def busy_processes(number: int) -> Iterator[None]:
    """So many processes that compute all the time, of one session, as those of another job would be: Linux may share
    processors out among sessions."""
    command = [sys.executable, "-S", "-E", "-c", _FOREVER]
    processes = [subprocess.Popen(command) for _ in range(number)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()
