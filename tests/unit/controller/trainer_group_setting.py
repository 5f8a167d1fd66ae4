"""A trainer group with fake workers."""

from __future__ import annotations

from typing import Any

from controller_fakes import FakeClock, FakeFleet, recorded, run_context

from rlserve.controller.events import WorkerLost
from rlserve.controller.trainer_group import TrainerGroup
from rlserve.manager.roles import Role


class Setting:
    """A group of ``slot_ids`` that has been formed."""

    def __init__(self, *slot_ids: str, others: tuple[str, ...] = ()) -> None:
        self.fleet = FakeFleet((*slot_ids, *others))
        self.clock = FakeClock(0.0)
        context = run_context(clock=self.clock)
        self.losses = recorded(context.events, WorkerLost)
        fleet: Any = self.fleet
        self.group = TrainerGroup(
            context,
            fleet,
            switch_timeout_s=5.0,
            step_timeout_s=5.0,
            on_one_machine=True,
        )
        self.slot_ids = slot_ids

    @property
    def lost(self) -> list[str]:
        assert all(loss.role is Role.TRAIN for loss in self.losses)
        return [loss.slot_id for loss in self.losses]

    async def formed(self) -> Setting:
        await self.group.form([(slot_id,) for slot_id in self.slot_ids], None)
        self.fleet.log.clear()
        return self

    def met(self, members: tuple[str, ...]) -> bool:
        """Whether these, in order of rank, were asked to form their next group."""
        places = [self.fleet[member].arguments.get("meet_trainers", [(None,)])[-1][0] for member in members]
        return [place and (place.rank, place.num_ranks) for place in places] == [
            (rank, len(members)) for rank in range(len(members))
        ]

    def generations(self, slot_id: str) -> list[tuple[int, int, int]]:
        """(generation, rank, world size) of each group that a worker was asked to join."""
        calls = self.fleet[slot_id].arguments.get("join_training", [])
        return [(place.generation, place.rank, place.num_ranks) for place, *_ in calls]


def raised(found: Any) -> Any:
    if isinstance(found, Exception):
        raise found
    return found
