"""A Ray cluster whose nodes are processes of this machine, started as a scheduler's job starts them."""

from __future__ import annotations

import os
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil

from rlserve.distributed.addresses import free_port

ENVIRONMENT = {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0", "OMP_NUM_THREADS": "1"}
"""No token: the nodes live for one measurement, on the loopback device."""
DEADLINE_S = 120.0
_HOST = "127.0.0.1"
_SYSTEM = '{"worker_niceness": 0, "prestart_worker_first_driver": false, "health_check_period_ms": 500}'
_JOINED = r"""
import sys
from ray._raylet import GcsClient
for info in GcsClient(address=sys.argv[1]).get_all_node_info().values():
    for name in info.resources_total:
        print(name, info.start_time_ms / 1000)
"""


def wait_for(condition: Callable[[], Any], what: str, *, poll_s: float = 0.02) -> Any:
    """What ``condition`` returns, once that is true.

    Raises:
        TimeoutError: it does not come.
    """
    deadline_s = time.monotonic() + DEADLINE_S
    while not (found := condition()):
        if time.monotonic() > deadline_s:
            raise TimeoutError(f"no {what} within {DEADLINE_S:.0f} s")
        time.sleep(poll_s)
    return found


class Cluster:
    """A head, and nodes that come. Ends with the ``with`` block."""

    def __init__(self, *slots: str, dashboard: bool = False, port: int | None = None) -> None:
        """``slots`` of the head, such as ``cpu-a``: one of each type. ``dashboard`` is for jobs."""
        self._folder = Path(tempfile.mkdtemp(prefix="rlserve-node-times-", dir="/tmp"))
        self._nodes: list[subprocess.Popen[bytes]] = []
        self.address = f"{_HOST}:{port or free_port()}"
        self.dashboard_port = free_port()
        options = ["--head", f"--port={self.address.rpartition(':')[2]}", f"--node-ip-address={_HOST}"]
        options += [f"--system-config={_SYSTEM}", f"--ray-client-server-port={free_port()}"]
        if dashboard:
            options += ["--include-dashboard=true", f"--dashboard-port={self.dashboard_port}"]
        self._start([*options, *_slots(slots)], forks=True)
        wait_for(self._is_up, "head of a cluster", poll_s=0.2)

    def add(self, slot_type: str, *, forks: bool) -> None:
        """Begin a node with one slot; ``forks``: with a fork server, as ``rlserve.launch.ray_node`` starts it, else by
        plain ``ray start``."""
        self._start([f"--address={self.address}", f"--node-ip-address={_HOST}", *_slots([slot_type])], forks=forks)

    def joined_at(self, slot_type: str) -> float:
        """When the node with such slots joined, by the wall clock, as the head has it."""
        found = subprocess.run(
            [sys.executable, "-c", _JOINED, self.address],
            env={**os.environ, **ENVIRONMENT},
            capture_output=True,
            text=True,
            check=True,
        )
        times = dict(line.split() for line in found.stdout.splitlines())
        return float(times[slot_type])

    def kill(self) -> None:
        """Kill all of it at once, as when the machine is lost."""
        processes = [each for node in self._nodes for each in _family(node.pid)]
        for process in processes:
            try:
                process.send_signal(signal.SIGKILL)
            except psutil.NoSuchProcess:
                continue
        for node in self._nodes:
            node.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()

    def _start(self, options: list[str], *, forks: bool) -> None:
        temporary = [] if "--head" not in options else [f"--temp-dir={self._folder / 'ray'}"]
        by = ["rlserve.launch.ray_node"] if forks else ["ray.scripts.scripts", "start", "--block"]
        if not forks:
            by += ["--disable-usage-stats", "--dashboard-agent-listen-port=0"]
        command = [sys.executable, "-m", *by, *temporary, *options]
        log = (self._folder / f"node-{len(self._nodes)}.txt").open("w")
        log.write(shlex.join(command) + "\n")
        log.flush()
        self._nodes.append(
            subprocess.Popen(command, env={**os.environ, **ENVIRONMENT}, stdout=log, stderr=log, start_new_session=True)
        )

    def _is_up(self) -> bool:
        host, _, port = self.address.partition(":")
        if self._nodes[0].poll() is not None:
            raise RuntimeError((self._folder / "node-0.txt").read_text())
        try:
            socket.create_connection((host, int(port)), timeout=1.0).close()
        except OSError:
            return False
        return True


def _slots(types: tuple[str, ...] | list[str]) -> list[str]:
    amounts = ", ".join(f'"{name}": 1' for name in types)
    return ["--num-cpus=1", "--num-gpus=0", f"--resources={{{amounts}}}"]


def _family(process_id: int) -> list[psutil.Process]:
    try:
        parent = psutil.Process(process_id)
        return [parent, *parent.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []
