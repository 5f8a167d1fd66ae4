"""The trainers' group where it sleeps between its turns.

::

    step … step ──► sleep ──► (every member rolls out) ──► wake ──► step …
                                   │ lost: left out           │ the others form the group of those that are left
                                   └──────────────────────────┘
"""

from __future__ import annotations

from collections.abc import Collection

from rlserve.controller.trainer_calls import failures_of
from rlserve.controller.trainer_group import TrainerGroup
from rlserve.pool.base import MemoryChange


class TrainersInTurn(TrainerGroup):
    """Of the placement ``colocated``."""

    _was_left_out = False
    """Members that slept were lost, and the others have not formed a group without them yet."""

    async def sleep(self) -> list[MemoryChange]:
        """Let all members give the memory of their devices back that they can, and keep the group, until ``wake``.
        Returns what each gave back.

        Raises:
            WorkerFailedError: no member survived.
        """
        async with self._boundary.change():
            while failures := failures_of(answers := await self._calls.all(self._members, "sleep_training")):
                await self._regroup_survivors(failures)
            return list(answers.values())

    def leave_out(self, slot_ids: Collection[str]) -> bool:
        """Workers were lost while the trainers sleep: those that wake go on without them. False where none is left."""
        staying = tuple(member for member in self._members if member not in slot_ids)
        self._was_left_out |= staying != self._members
        self._members = staying
        return bool(staying)

    async def wake(self) -> None:
        """After ``sleep``: bring all members that are left to where they can step.

        Raises:
            WorkerFailedError: no member survived, or some part of the state was lost.
        """
        async with self._boundary.change():
            failures = failures_of(await self._calls.all(self._members, "wake_training"))
            if failures:
                await self._regroup_survivors(failures)
            elif self._was_left_out:
                await self._regroup(self._members)
            self._was_left_out = False
