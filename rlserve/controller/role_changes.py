"""The steps of a change of role, for all workers of a gang at once; the book is kept at every step.

::

    train → idle     (step boundary) the trainers re-form without the gang
    rollout → idle   the gang serves no more, its requests move on, the memory of its engine is freed
    idle → rollout   the ranks of its engine are formed, or take their memory again; it takes the newest weights; it
                     serves
    idle → train     (step boundary) the trainers re-form with the gang
"""

from __future__ import annotations

from rlserve.controller.engine_ranks import EngineRanks
from rlserve.controller.gang_book import GangBook
from rlserve.controller.replicas import Replicas
from rlserve.controller.trainer_group import TrainerGroup
from rlserve.manager.gang_table import GangState
from rlserve.manager.roles import Role
from rlserve.pool.gangs import Gang


class RoleChanges:
    """Takes roles from gangs and gives them roles. Whatever fails in it is for the caller to handle."""

    def __init__(self, book: GangBook, ranks: EngineRanks, trainers: TrainerGroup, replicas: Replicas) -> None:
        self._book = book
        self._ranks = ranks
        self._trainers = trainers
        self._replicas = replicas

    async def take(self, gang: Gang, role: Role, reason: str) -> None:
        """Give an idle gang a role.

        Raises:
            WorkerFailedError: a worker of it was lost, or failed.
        """
        if role is Role.ROLLOUT:
            self._book.move(gang, GangState.JOINING_ROLLOUT, reason)
            await self._ranks.start(gang)
            await self._replicas.join(gang.leader)
            self._book.move(gang, GangState.ROLLOUT, reason)
        else:
            self._book.move(gang, GangState.JOINING_TRAIN, reason)
            await self._trainers.add(gang.slot_ids)
            self._book.move(gang, GangState.TRAIN, reason)

    async def give_up(self, gang: Gang, reason: str) -> bool:
        """Bring a gang to idle; False where it is the last of the trainers, and stays one.

        Raises:
            WorkerFailedError: a worker of it was lost, or failed.
        """
        match self._book.state(gang):
            case GangState.TRAIN:
                if not await self._trainers.remove(
                    gang.slot_ids, on_leaving=lambda: self._book.move(gang, GangState.LEAVING_TRAIN, reason)
                ):
                    return False
                self._book.move(gang, GangState.IDLE, "left the trainers")
            case GangState.ROLLOUT:
                self._book.move(gang, GangState.LEAVING_ROLLOUT, reason)
                await self._replicas.leave(gang.leader)
                self._book.move(gang, GangState.IDLE, "serves no more")
        return True
