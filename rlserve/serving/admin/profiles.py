"""Profiles of replicas that operators ask for, one at a time.

::

    begin ──► a task: the replica profiles its next steps, and writes ──► ended by itself, or by end ──► Profile
"""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from rlserve.errors import UserError, WorkerLostError
from rlserve.serving.admin.base import Profile, ProfileBounds
from rlserve.serving.protocol.errors import ApiError
from rlserve.serving.replicas.messages import Done, Order

logger = logging.getLogger(__name__)

_WRITE_TIMEOUT_S = 120.0


class Profilable(Protocol):
    """A replica that can carry out ``profile`` and ``end_profile``."""

    @property
    def name(self) -> str:
        """By which operators know it."""

    async def order(self, order: Order) -> Done:
        """Have an order carried out, and wait for what became of it.

        Raises:
            WorkerLostError: it ended before.
        """


@dataclass(frozen=True, kw_only=True)
class _Taking:
    replica: Profilable
    task: asyncio.Task[Profile]


class Profiles:
    """
    Args:
        folder: of the traces. None refuses profiles.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._last: _Taking | None = None

    def begin(self, replica: Profilable, bounds: ProfileBounds) -> None:
        """Have the next steps of a replica profiled.

        Raises:
            ApiError: there is no folder for it, or another profile is being taken.
        """
        if self._folder is None:
            raise ApiError(501, "profiles are off: set admin.profile_folder, which their traces are written to")
        if self._last is not None and not self._last.task.done():
            raise ApiError(409, f"a profile of replica {self._last.replica.name} is being taken: one at a time")
        moment = f"{time.strftime('%Y%m%dT%H%M%S')}-{time.time_ns() // 1000 % 1_000_000:06}"
        name = f"{moment}-replica-{replica.name.replace('/', '-')}"
        path = self._folder / f"{name}.trace.json.gz"
        self._last = _Taking(replica=replica, task=asyncio.create_task(_take(replica, path, bounds)))

    async def end(self) -> Profile:
        """End the profile of now; what became of it, or of the last one.

        Raises:
            ApiError: there was none, or it cannot be had.
        """
        if self._last is None:
            raise ApiError(409, "no profile is being taken")
        if not self._last.task.done():
            try:
                await self._last.replica.order(Order(action="end_profile"))
            except WorkerLostError:
                logger.info("replica %s was lost under its profile", self._last.replica.name)
        return await self.last()

    async def last(self) -> Profile:
        """What becomes of the profile that was begun last; waits for its end."""
        assert self._last is not None
        # Whoever asked may leave: the profile goes on.
        return await asyncio.shield(self._last.task)


def open_profile_folder(path: str | None) -> Path | None:
    """The folder for traces, made if need be.

    Raises:
        UserError: it cannot be made.
    """
    if path is None:
        return None
    folder = Path(path).expanduser().absolute()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"admin.profile_folder={path} cannot be made: {error}") from error
    return folder


async def _take(replica: Profilable, path: Path, bounds: ProfileBounds) -> Profile:
    order = Order(action="profile", trace_path=str(path), max_steps=bounds.num_steps, max_s=bounds.seconds)
    try:
        async with asyncio.timeout(bounds.seconds + _WRITE_TIMEOUT_S):
            done = await replica.order(order)
    except WorkerLostError as error:
        raise ApiError(503, f"no profile: {error}", headers={"Retry-After": "5"}) from error
    except TimeoutError as error:
        raise ApiError(503, f"no profile: replica {replica.name} has not written it in time") from error
    if done.error is not None:
        raise ApiError(500, f"no profile: {done.error}")
    logger.info("replica %s: %d steps are profiled in %s", replica.name, done.num_steps, path)
    return Profile(path=str(path), replica=replica.name, num_steps=done.num_steps, num_bytes=done.num_bytes)
