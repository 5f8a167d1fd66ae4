"""The broker of a cluster: one small process, as a detached Ray actor, that keeps the book of all runs which share it.

The first run starts it, and it ends when the last has gone. Each run sends what it claims about once a second, and a
sign of life whatever else it is doing. All that the broker knows is in the claims, so if its node is lost the next
claim starts another.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import ray

from rlserve.errors import PoolError
from rlserve.pool.discovery import discover_cluster, free_slots
from rlserve.pool.sharing.base import Allowance, Claim
from rlserve.pool.sharing.book import Cluster, SharingBook

logger = logging.getLogger(__name__)

NAME = "rlserve_broker"
NAMESPACE = "rlserve"
_BEAT_S = 1.0
_CALL_TIMEOUT_S = 20.0
_NUM_TRIES = 5
_LONELY_S = 90.0
"""Without a word of anybody, after which it ends by itself."""


class Broker:
    """The actor."""

    def __init__(self) -> None:
        self._book = SharingBook()
        self._heard_s = time.monotonic()
        threading.Thread(target=self._end_when_lonely, name="lonely", daemon=True).start()

    def claim(self, claim: Claim) -> Allowance:
        """What a run may have now."""
        self._heard_s = now_s = time.monotonic()
        self._expire(now_s)
        return self._book.answer(claim, Cluster(nodes=discover_cluster(), free=free_slots()), now_s=now_s)

    def renew(self, claim: Claim) -> None:
        """A run lives."""
        self._heard_s = now_s = time.monotonic()
        self._book.renew(claim, now_s=now_s)

    def leave(self, run_id: str) -> None:
        """A run has ended; the broker ends with the last."""
        self._book.forget(run_id)
        self._expire(time.monotonic())
        if not self._book.run_ids:
            ray.actor.exit_actor()

    def runs(self) -> tuple[str, ...]:
        """The ids of all that share the cluster."""
        return self._book.run_ids

    def _expire(self, now_s: float) -> None:
        quiet = self._book.quiet(now_s)
        ended = [job_id for job_id in quiet if _has_ended(job_id)] if quiet else ()
        for claim in self._book.expire(now_s, ended_jobs=ended):
            logger.warning("run %s is gone", claim.name)

    def _end_when_lonely(self) -> None:
        while time.monotonic() - self._heard_s < _LONELY_S:
            time.sleep(_BEAT_S)
        os._exit(0)


def _has_ended(job_id: str) -> bool:
    from ray._private.state import state  # what Ray knows of its drivers

    return any(job["JobID"] == job_id and job["IsDead"] for job in state.job_table())


class BrokerClient:
    """A run's end: sends its claims, and signs of life in between. May be called from any thread, one at a time."""

    def __init__(self, connect: Callable[[], Any] | None = None) -> None:
        """``connect`` gives the broker's handle, starting it where there is none."""
        self._connect = connect or _connect
        self._broker: Any = None
        self._claim: Claim | None = None
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._beats = threading.Thread(target=self._beat, name="signs of life", daemon=True)

    def claim(self, claim: Claim) -> Allowance:
        """Tell what the run claims; what it may have.

        Raises:
            PoolError: no broker answers.
        """
        with self._lock:
            self._claim = claim
            allowance: Allowance = self._call("claim", claim)
            self._claim = replace(claim, allowed=allowance.slots)
        if not self._beats.is_alive() and not self._closed.is_set():
            self._beats.start()
        return allowance

    def close(self) -> None:
        """The run has ended, and has nothing any more."""
        if self._closed.is_set() or self._claim is None:
            return
        self._closed.set()
        if self._beats.is_alive():
            self._beats.join()
        try:
            ray.get(self._broker.leave.remote(self._claim.run_id), timeout=_CALL_TIMEOUT_S)
        except ray.exceptions.RayError as error:  # it has ended with us, or its node is gone: nothing is lost
            logger.debug("the broker of the cluster says: %s", error)

    def _beat(self) -> None:
        while not self._closed.wait(_BEAT_S):
            with self._lock:
                claim = self._claim
                try:
                    self._call("renew", claim)
                except PoolError as error:
                    logger.warning("%s", error)

    def _call(self, method: str, *arguments: Any) -> Any:
        """Call the broker; another one where it has just ended, or was lost."""
        reason: Exception | None = None
        for _ in range(_NUM_TRIES):
            try:
                if self._broker is None:
                    self._broker = self._connect()
                return ray.get(getattr(self._broker, method).remote(*arguments), timeout=_CALL_TIMEOUT_S)
            except (ray.exceptions.RayError, ValueError) as error:  # ValueError: its name was just given up
                self._broker, reason = None, error
                if self._closed.wait(_BEAT_S / 2):
                    break
        raise PoolError(
            f"the broker of the runs that share this cluster (Ray's actor {NAME} in namespace {NAMESPACE}) does not "
            f"answer: {str(reason).splitlines()[0]}"
        )


def _connect() -> Any:
    actor_class: Any = ray.remote(Broker)
    return actor_class.options(
        name=NAME, namespace=NAMESPACE, lifetime="detached", get_if_exists=True, num_cpus=0, max_restarts=0
    ).remote()
