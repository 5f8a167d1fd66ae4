"""A running Ray cluster: joined as a driver, also from inside ``ray job submit``."""

from __future__ import annotations

import logging
import os
import signal
import socket
import time
from collections.abc import Callable
from typing import TypeVar

import ray

from rlserve.errors import PoolError
from rlserve.launch.connect.base import Launcher
from rlserve.launch.connect.ray_logs import route_ray_logs
from rlserve.pool.config import PoolConfig, SlotGroupConfig
from rlserve.pool.discovery import count_slots, discover_cluster
from rlserve.pool.slots import slot_groups

_T = TypeVar("_T")
_CONNECT_TIMEOUT_S = 10.0
_RETRY_INTERVAL_S = 1.0


class ClusterLauncher(Launcher):
    """Joins the cluster at ``address``; None takes RAY_ADDRESS, or the cluster that this machine belongs to.

    Nodes with GPUs offer them by their type; a node without GPUs declares CPU slots as custom resources:
    ``ray start --resources='{"cpu-a": 2}'``. The run's folder must lie where all nodes see it.
    """

    def __init__(self, address: str | None, wait_s: float = 0.0) -> None:
        self._address = address
        self._wait_s = wait_s

    def connect(self, config: PoolConfig) -> tuple[SlotGroupConfig, ...]:
        deadline_s = time.monotonic() + self._wait_s
        _retried(lambda: _check_answers(self._address or os.environ.get("RAY_ADDRESS", "")), deadline_s)
        route_ray_logs()
        on_terminate = signal.getsignal(signal.SIGTERM)
        try:
            ray.init(
                address=self._address or "auto",
                log_to_driver=False,
                logging_level=logging.WARNING,
                configure_logging=False,
            )
        except ConnectionError as error:
            where = self._address or "RAY_ADDRESS or this machine"
            raise PoolError(f"no Ray cluster answers at {where} (launch.address): {error}") from error
        signal.signal(signal.SIGTERM, on_terminate)  # Ray has put its own there, which ends the process at once
        return _retried(lambda: _slot_groups(config), deadline_s)

    def close(self) -> None:
        ray.shutdown()


def _retried(
    attempt: Callable[[], _T],
    deadline_s: float,
    *,
    now: Callable[[], float] = time.monotonic,
    wait: Callable[[], object] = lambda: time.sleep(_RETRY_INTERVAL_S),
) -> _T:
    """What ``attempt`` returns, once it does; its error from the deadline on.

    Raises:
        PoolError: as ``attempt`` does.
    """
    while True:
        try:
            return attempt()
        except PoolError:
            if now() >= deadline_s:
                raise
        wait()


def _slot_groups(config: PoolConfig) -> tuple[SlotGroupConfig, ...]:
    discovered = count_slots(discover_cluster())
    if not discovered:
        raise PoolError(
            "the Ray cluster has neither GPUs nor CPU slots; declare slots with "
            """ray start --resources='{"cpu-a": 2}'"""
        )
    return slot_groups(config, discovered)


def _check_answers(address: str) -> None:
    """Refuse an address where nobody listens: Ray itself would try for minutes.

    Raises:
        PoolError: nobody listens there, or it is no address of a cluster's head.
    """
    if address in ("", "auto"):
        return
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or "/" in host:
        raise PoolError(f"launch.address must be HOST:PORT of the head of a Ray cluster, or auto; got {address!r}")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_TIMEOUT_S).close()
    except (OSError, OverflowError) as error:
        raise PoolError(f"no Ray cluster answers at {address} (launch.address): {error}") from error
