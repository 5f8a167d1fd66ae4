"""Roles where every gang has both in turn: a gang stays a member of the trainers while it rolls out.

::

    turn of training   idle ──► train: a newcomer joins the trainers           train ──► idle: it leaves them for good
    turn of rollout    idle: a newcomer waits for the next turn of training, since it has no weights before

All gangs change sides together (``rlserve.controller.turns.in_turn``); here is what happens to single ones meanwhile.
"""

from __future__ import annotations

from rlserve.controller.engine_ranks import EngineRanks
from rlserve.controller.gang_book import GangBook
from rlserve.controller.replicas import Replicas
from rlserve.controller.role_changes import RoleChanges
from rlserve.controller.turns.trainers import TrainersInTurn
from rlserve.errors import WorkerFailedError
from rlserve.manager.gang_table import GangState
from rlserve.manager.roles import Role
from rlserve.pool.base import MemoryChange
from rlserve.pool.gangs import Gang


class RolesInTurn(RoleChanges):
    """Of the placement ``colocated``."""

    num_gangs_needed = 1
    joined_at_any_time: frozenset[Role] = frozenset()
    turn = Role.TRAIN
    """What all gangs do now."""

    def __init__(self, book: GangBook, ranks: EngineRanks, trainers: TrainersInTurn, replicas: Replicas) -> None:
        super().__init__(book, ranks, trainers, replicas)
        self._sleepers = trainers

    async def take(self, gang: Gang, role: Role, reason: str) -> None:
        """Let an idle gang take part: at once while all train, else from the next turn of training on."""
        if self.turn is Role.TRAIN and self._book.state(gang) is GangState.IDLE:
            await super().take(gang, Role.TRAIN, reason)

    def may_give_up(self, gang: Gang) -> bool:
        """Only the trainers can hand over what a gang holds of their state."""
        return self._book.state(gang) is GangState.TRAIN and self._book.has_other(gang)

    def note_lost(self, gang: Gang, error: BaseException) -> None:
        """With a gang that rolled out its part of the sleeping trainers is lost.

        Raises:
            WorkerFailedError: it was the last.
        """
        super().note_lost(gang, error)
        if self.turn is Role.ROLLOUT and not self._sleepers.leave_out(gang.slot_ids):
            raise WorkerFailedError(
                f"no trainer is left that holds the state ({gang.id} lost: {error}): continue with --resume"
            )

    async def serve(self, gang: Gang) -> None:
        """Bring a gang whose trainer sleeps to where it serves, with the newest weights.

        Raises:
            WorkerFailedError: it was lost, or failed, on the way.
        """
        self._book.move(gang, GangState.IDLE, "its trainer sleeps")
        await super().take(gang, Role.ROLLOUT, "turn of rollout")

    async def stop_serving(self, gang: Gang) -> MemoryChange:
        """Bring a gang that serves to where its trainer can wake; its requests wait with their tokens. Returns what its
        engine gave back.

        Raises:
            WorkerFailedError: it was lost, or failed, on the way.
        """
        self._book.move(gang, GangState.LEAVING_ROLLOUT, "turn of training")
        change = await self._replicas.leave(gang.leader)
        self._book.move(gang, GangState.IDLE, "serves no more")
        self._book.move(gang, GangState.JOINING_TRAIN, "turn of training")  # at once: idle are those without a trainer
        return change
