"""Ray clusters on this machine, each of a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from runs import DEADLINE_S

ENVIRONMENT = {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0", "OMP_NUM_THREADS": "1"}
"""No token: these nodes live for one test, on the loopback device."""


@contextmanager
def running_cluster(script: str) -> Iterator[subprocess.Popen[str]]:
    """Python that starts a cluster, says on its output where that is, and ends it at the end of its input."""
    process = subprocess.Popen(
        [sys.executable, "-c", script],
        env={**os.environ, **ENVIRONMENT},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    yield process
    process.stdin.close()
    process.wait(DEADLINE_S)
