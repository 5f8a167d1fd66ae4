"""Bringing the workers of a gang into the rollout role: one engine over all of them.

Where the gang has one slot, its worker makes an engine of its own. Where it has several, they form a group on their
node, rank 0 with the engine and the others following it. A group stays formed while its workers live, also while they
train, so the next time costs one call; a gang that lost a worker gets a new group, with a new secret.
"""

from __future__ import annotations

import asyncio
import secrets
from typing import Any

from rlserve.controller.ports import Fleet
from rlserve.distributed.base import RankPlace
from rlserve.pool.gangs import Gang
from rlserve.remote import answer

_ON_ONE_MACHINE = True  # a gang is on one node


class EngineRanks:
    """Keeps the places of the ranks of each gang."""

    def __init__(self, fleet: Fleet, *, switch_timeout_s: float) -> None:
        self._fleet = fleet
        self._switch_timeout_s = switch_timeout_s
        self._places: dict[str, tuple[RankPlace, ...]] = {}

    async def start(self, gang: Gang) -> None:
        """Give the workers of an idle gang the rollout role.

        Raises:
            WorkerFailedError: one of them was lost, or failed.
        """
        if len(gang.slots) == 1:
            await self._call(gang.leader, "start_rollout", None)
            return
        places = self._places.get(gang.id) or await self._new_places(gang)
        self._places[gang.id] = places
        calls = [
            self._call(slot_id, "follow_rollout" if place.rank else "start_rollout", place)
            for slot_id, place in zip(gang.slot_ids, places, strict=True)
        ]
        await asyncio.gather(*calls)  # the first that fails is enough: the gang is released then

    def forget(self, gang_id: str) -> None:
        """A gang lost a worker, so its group has to be formed anew."""
        self._places.pop(gang_id, None)

    async def _new_places(self, gang: Gang) -> tuple[RankPlace, ...]:
        host, port = await self._call(gang.leader, "choose_port", _ON_ONE_MACHINE)
        secret = secrets.token_hex(32)
        return tuple(
            RankPlace(rank=rank, num_ranks=len(gang.slots), host=host, port=port, secret=secret)
            for rank in range(len(gang.slots))
        )

    async def _call(self, slot_id: str, method: str, *arguments: Any) -> Any:
        call = getattr(self._fleet[slot_id], method).remote(*arguments)
        return await answer(call, timeout_s=self._switch_timeout_s, what=f"{slot_id} taking the rollout role")
