"""The steps of a change of role, for all workers of a gang at once; the book is kept at every step.

::

    train → idle     those who stay meet; (step boundary) they go on without the gang, whose memory is freed
    rollout → idle   the gang serves no more, its requests move on, the memory of its engine is freed
    rollout → train  both, one beside the other: the trainers, if their step ends before, wait a little for the gang
    idle → rollout   the ranks of its engine are formed, or take their memory again; it takes the newest weights; it
                     serves
    idle → train     the gang builds model and optimizer, empty, and meets the trainers; (step boundary) it joins them
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from rlserve.controller.engine_ranks import EngineRanks
from rlserve.controller.gang_book import ROLES, GangBook
from rlserve.controller.replicas import Replicas
from rlserve.controller.trainer_group import TrainerGroup
from rlserve.manager.gang_table import GangState
from rlserve.manager.roles import Role
from rlserve.pool.gangs import Gang


class RoleChanges:
    """Takes roles from gangs and gives them roles. Whatever fails in it is for the caller to handle."""

    num_gangs_needed = 2
    """One trains and one rolls out."""
    joined_at_any_time = frozenset({Role.ROLLOUT})
    """Roles that a lost gang comes back to while others change theirs: a replica joins nobody."""

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
            await self._trainers.prepare(gang.slot_ids)
            await self._trainers.add(gang.slot_ids)
            self._book.move(gang, GangState.TRAIN, reason)

    def may_give_up(self, gang: Gang) -> bool:
        """Whether a gang may leave the role that it has now: another, which stays, has it too."""
        return self._book.state(gang) in ROLES and self._book.has_other(gang)

    def note_lost(self, gang: Gang, error: BaseException) -> None:
        """A gang has lost a worker, and with it whatever role it had."""
        self._ranks.forget(gang.id)

    @property
    def trainer_pause_s(self) -> float:
        """Seconds that training stood still because its group was changed, since the run began."""
        return self._trainers.pause_s

    async def go_to_training(self, gang: Gang, reason: str, *, patience_s: Callable[[float], float]) -> None:
        """Let a gang that rolls out leave, and join the trainers at the end of their step. ``patience_s`` says how long
        they wait there for a gang that has been leaving since a time.

        Raises:
            WorkerFailedError: a worker of it was lost, or failed.
        """
        self._book.move(gang, GangState.LEAVING_ROLLOUT, reason)
        left_since_s = self._book.table.entered_s(gang.id, GangState.LEAVING_ROLLOUT)
        ready = asyncio.ensure_future(self._leave_rollout(gang, reason))
        try:
            await self._trainers.add_when(ready, gang.slot_ids, patience_s=lambda: patience_s(left_since_s))
        finally:
            ready.cancel()
            await asyncio.wait([ready])
        self._book.move(gang, GangState.TRAIN, reason)

    async def _leave_rollout(self, gang: Gang, reason: str) -> None:
        await self._replicas.leave(gang.leader)
        await self._trainers.prepare(gang.slot_ids)
        self._book.move(gang, GangState.IDLE, "serves no more, and is ready to train")
        self._book.move(gang, GangState.JOINING_TRAIN, reason)

    async def give_up(self, gang: Gang, reason: str) -> bool:
        """Bring a gang to idle; False where it is the last of the trainers, or is left as the last, and stays one.

        Raises:
            WorkerFailedError: a worker of it was lost, or failed.
        """
        match self._book.state(gang):
            case GangState.TRAIN:
                if not await self._trainers.remove(
                    gang.slot_ids, on_leaving=lambda: self._book.move(gang, GangState.LEAVING_TRAIN, reason)
                ):
                    if self._book.state(gang) is GangState.LEAVING_TRAIN:
                        self._book.move(gang, GangState.TRAIN, "all other trainers are lost")
                    return False
                self._book.move(gang, GangState.IDLE, "left the trainers")
            case GangState.ROLLOUT:
                self._book.move(gang, GangState.LEAVING_ROLLOUT, reason)
                await self._replicas.leave(gang.leader)
                self._book.move(gang, GangState.IDLE, "serves no more")
        return True
