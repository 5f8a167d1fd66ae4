"""One node of a Ray cluster inside a scheduler's job: ``python -m rlserve.launch.ray_node OPTIONS-OF-RAY-START``.

A scheduler that takes a job's machines away signals all of its processes. The run's own process then saves, and Ray has
to last until it has: here the signals of schedulers are blocked, which processes that are started inherit. SIGALRM ends
them.

A node without GPUs gets a fork server beside Ray, which imports while the node joins, and a label that names it to the
drivers of runs (``rlserve.pool.fork_server``)::

    ray_node ──starts──► fork server ◄── workers of slots with one thread
       │     ──starts──► guard, which removes the server's folder when Ray has ended
       └─becomes─► ray start --block --labels=rlserve-fork-server=…
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence

from rlserve.launch.connect.folder_guard import FolderGuard
from rlserve.pool.fork_server import LABEL, ForkServer

_BLOCKED = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)
_NUM_THREADS = 1
"""Of workers that are forked; those of a slot with more (``num_threads``) start without the server."""


def main(arguments: Sequence[str]) -> None:
    """Become ``ray start --block``."""
    signal.pthread_sigmask(signal.SIG_BLOCK, _BLOCKED)
    # The node's own dashboard agent listens wherever it can: two nodes may share a machine.
    fixed = ["--block", "--disable-usage-stats", "--dashboard-agent-listen-port=0"]
    if "--head" in arguments:
        fixed.append("--include-dashboard=false")
    if forks_workers(arguments):
        fixed.append(f"--labels={LABEL}={_start_fork_server()}")
    os.execv(sys.executable, [sys.executable, "-m", "ray.scripts.scripts", "start", *fixed, *arguments])


def forks_workers(arguments: Sequence[str]) -> bool:
    """Whether a node has CPU slots and no GPU, which no process may have touched that is forked; and no labels of the
    user's, beside which Ray takes no others."""
    names = dict(argument.partition("=")[::2] for argument in arguments)
    return names.get("--num-gpus", "0") == "0" and "cpu" in names.get("--resources", "") and "--labels" not in names


def _start_fork_server() -> str:
    """Start one, and what cleans up after it; returns its label. Both outlive this program, as it becomes Ray."""
    server = ForkServer(_NUM_THREADS)
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGALRM])  # not for the guard, which ends after all others
    guard = FolderGuard(server.folder)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGALRM])
    os.set_inheritable(guard.pipe, True)  # so that it ends with Ray, and not now
    return server.label


if __name__ == "__main__":
    main(sys.argv[1:])
