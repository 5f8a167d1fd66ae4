"""What an operator can do to the server of a run: look, move gangs, the way ``rlserve move`` does, and profile engines.

Pauses, weights and drains of replicas are the run's own business.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import cast

from rlserve.controller.clients.desk import ClientDesk
from rlserve.errors import UserError, WorkerFailedError, WorkerLostError
from rlserve.serving.admin.base import MovedGang, Operations, Profile, ProfileBounds, ReplicaStatus
from rlserve.serving.admin.profiles import Profiles
from rlserve.serving.protocol.errors import ApiError
from rlserve.serving.replicas.messages import Done, Order
from rlserve.tracking.move_requests import Action, MoveAnswer, RoleName, ask
from rlserve.tracking.run_folder import RunFolder

_SHOW_TIMEOUT_S = 30.0
_MOVE_TIMEOUT_S = 600.0


class RunOperations(Operations):
    """
    Args:
        folder: of the run, which takes requests for moves there.
        desk: knows the replicas.
        controller: the loop of the controller, which asks them.
        profile_folder: of traces, on the machine of each replica; None refuses profiles.
    """

    def __init__(
        self,
        folder: RunFolder,
        desk: ClientDesk,
        controller: asyncio.AbstractEventLoop,
        *,
        profile_folder: Path | None = None,
    ) -> None:
        self._folder = folder
        self._desk = desk
        self._controller = controller
        self._profiles = Profiles(profile_folder)

    async def status(self) -> list[ReplicaStatus]:
        """Of all gangs."""
        answer = await self._ask("show")
        return [
            ReplicaStatus(name=gang.id, state=gang.state, is_drained=gang.leaving is not None) for gang in answer.gangs
        ]

    async def move(self, gang: str, role: str) -> MovedGang:
        """The run moves the gang when no other move is under way, and holds the split then."""
        answer = await self._ask("move", gang, cast(RoleName, role))
        if answer.outcome == "refused":
            raise ApiError(409, f"the run refuses: {answer.message}", "gang")
        return MovedGang(message=answer.message)

    def begin_profile(self, replica: str | None, bounds: ProfileBounds) -> None:
        """Of one that serves; the one with the most to do if none is named."""
        serving = self._desk.replica_stats
        if not serving:
            raise ApiError(503, "no replica serves now", headers={"Retry-After": "5"})
        if replica is not None and replica not in serving:
            raise ApiError(404, f"no replica {replica[:200]!r} serves; there are {', '.join(serving)}", "replica")
        busiest = max(serving, key=lambda slot_id: serving[slot_id].num_running + serving[slot_id].num_waiting)
        self._profiles.begin(_Profilable(replica or busiest, self._desk, self._controller), bounds)

    async def end_profile(self) -> Profile:
        """Its trace is written then."""
        return await self._profiles.end()

    async def last_profile(self) -> Profile:
        """Its trace is written then."""
        return await self._profiles.last()

    async def _ask(self, action: Action, gang: str | None = None, role: RoleName | None = None) -> MoveAnswer:
        timeout_s = _MOVE_TIMEOUT_S if action == "move" else _SHOW_TIMEOUT_S
        try:
            return await asyncio.to_thread(ask, self._folder, action, gang, role, timeout_s=timeout_s)
        except UserError as error:
            raise ApiError(503, str(error), headers={"Retry-After": "5"}) from error


class _Profilable:
    """A replica of the run, for the front's thread."""

    def __init__(self, name: str, desk: ClientDesk, controller: asyncio.AbstractEventLoop) -> None:
        self.name = name
        self._desk = desk
        self._controller = controller

    async def order(self, order: Order) -> Done:
        """Have the run carry it out."""
        work = asyncio.run_coroutine_threadsafe(self._carry_out(order), self._controller)
        try:
            return await asyncio.wrap_future(work)
        except WorkerLostError:
            raise
        except WorkerFailedError as error:
            raise WorkerLostError(str(error)) from error

    async def _carry_out(self, order: Order) -> Done:
        """In the controller's loop."""
        if order.action == "end_profile":
            await self._desk.end_profile(self.name)
            return Done(number=order.number)
        try:
            profiled = await self._desk.profile(
                self.name, order.trace_path, max_steps=order.max_steps, max_s=order.max_s
            )
        except UserError as error:
            return Done(number=order.number, error=str(error))
        return Done(number=order.number, num_steps=profiled.num_steps, num_bytes=profiled.num_bytes)
