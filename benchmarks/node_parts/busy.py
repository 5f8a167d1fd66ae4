"""Other work on this machine, as much as one likes."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from rlserve.processes import end_with_parent

_FOREVER = "while True: pass"


@contextmanager
def busy_processes(number: int) -> Iterator[None]:
    """So many processes that compute all the time, each of a session of its own, as of as many other users: Linux may
    share processors out among sessions."""
    command, parent = [sys.executable, "-S", "-E", "-c", _FOREVER], os.getpid()
    processes = [
        subprocess.Popen(command, start_new_session=True, preexec_fn=lambda: end_with_parent(parent))
        for _ in range(number)
    ]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()
