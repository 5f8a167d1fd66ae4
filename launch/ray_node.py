"""One node of a Ray cluster inside a scheduler's job: ``python -m rlserve.launch.ray_node OPTIONS-OF-RAY-START``.

A scheduler that takes a job's machines away signals all of its processes. The run's own process then saves, and Ray has
to last until it has: here the signals of schedulers are blocked, which processes that are started inherit. SIGALRM ends
them.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence

_BLOCKED = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)


def main(arguments: Sequence[str]) -> None:
    """Become ``ray start --block``."""
    signal.pthread_sigmask(signal.SIG_BLOCK, _BLOCKED)
    # The node's own dashboard agent listens wherever it can: two nodes may share a machine.
    fixed = ["--block", "--disable-usage-stats", "--dashboard-agent-listen-port=0"]
    if "--head" in arguments:
        fixed.append("--include-dashboard=false")
    os.execv(sys.executable, [sys.executable, "-m", "ray.scripts.scripts", "start", *fixed, *arguments])


if __name__ == "__main__":
    main(sys.argv[1:])
