"""What an operator can do to the server of a run: look, and move gangs, the way ``rlserve move`` does.

Pauses, weights and drains of replicas are the run's own business.
"""

from __future__ import annotations

import asyncio
from typing import cast

from rlserve.errors import UserError
from rlserve.serving.admin.base import MovedGang, Operations, ReplicaStatus
from rlserve.serving.protocol.errors import ApiError
from rlserve.tracking.move_requests import Action, MoveAnswer, RoleName, ask
from rlserve.tracking.run_folder import RunFolder

_SHOW_TIMEOUT_S = 30.0
_MOVE_TIMEOUT_S = 600.0


class RunOperations(Operations):
    """
    Args:
        folder: of the run, which takes requests for moves there.
    """

    def __init__(self, folder: RunFolder) -> None:
        self._folder = folder

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

    async def _ask(self, action: Action, gang: str | None = None, role: RoleName | None = None) -> MoveAnswer:
        timeout_s = _MOVE_TIMEOUT_S if action == "move" else _SHOW_TIMEOUT_S
        try:
            return await asyncio.to_thread(ask, self._folder, action, gang, role, timeout_s=timeout_s)
        except UserError as error:
            raise ApiError(503, str(error), headers={"Retry-After": "5"}) from error
