"""The fleet with fake actors: who is replaced when a gang has lost a worker."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Any

import pytest
from pool_builders import make_spec
from ray.exceptions import RayActorError

from rlserve.pool.base import WorkerInfo, WorkerSpec
from rlserve.pool.fleet import Fleet
from rlserve.pool.slots import Slot
from rlserve.roofline.accelerators import slot_type


class FakeActor:
    """Answers ``info`` and ``release``; one that is dead answers nothing."""

    def __init__(self, spec: WorkerSpec) -> None:
        self.spec = spec
        self.is_dead = False
        self.num_releases = 0

    @property
    def info(self) -> FakeActor:
        return self

    @property
    def release(self) -> FakeActor:
        self.num_releases += 1
        return self

    def remote(self) -> Awaitable[Any]:
        return self._answer()

    async def _answer(self) -> WorkerInfo:
        if self.is_dead:
            raise RayActorError()
        return WorkerInfo(slot_id=self.spec.slot_id, process_id=self.spec.incarnation, host="here")


@pytest.fixture
def actors(monkeypatch: pytest.MonkeyPatch) -> list[FakeActor]:
    """All that were made, in order."""
    made: list[FakeActor] = []

    def create(slot: Slot, spec: WorkerSpec, worker_python: str | None) -> FakeActor:
        made.append(FakeActor(spec))
        return made[-1]

    monkeypatch.setattr("rlserve.pool.fleet._create_actor", create)
    monkeypatch.setattr("ray.kill", lambda actor, no_restart: setattr(actor, "is_dead", True))
    return made


def slot_of(slot_id: str) -> tuple[Slot, WorkerSpec]:
    return Slot(id=slot_id, type=slot_type("cpu"), prefer=None, num_threads=1), make_spec(slot_id)


async def started(*slot_ids: str) -> Fleet:
    fleet = Fleet(start_timeout_s=5.0)
    await fleet.start([slot_of(slot_id) for slot_id in slot_ids])
    return fleet


@pytest.mark.parametrize("lost", ["a", "b", "c"])
def test_whoever_is_gone_is_replaced_and_the_others_release_what_they_have(lost: str, actors: list[FakeActor]) -> None:
    async def scenario() -> None:
        fleet = await started("a", "b", "c")
        next(actor for actor in actors if actor.spec.slot_id == lost).is_dead = True
        assert await fleet.recover(("a", "b", "c")) == (lost,)
        *_, new = actors
        assert (len(actors), new.spec.slot_id, new.spec.incarnation) == (4, lost, 1)
        assert all(actor.num_releases == 1 for actor in actors[:3])
        assert fleet.ready == tuple(sorted(fleet.ready, key=lambda slot_id: slot_id == lost))
        assert fleet.info(lost).process_id == 1

    asyncio.run(scenario())


def test_an_engine_that_failed_by_itself_costs_its_worker(actors: list[FakeActor]) -> None:
    async def scenario() -> None:
        fleet = await started("a", "b")
        assert await fleet.recover(("a", "b")) == ("a",)
        assert actors[0].is_dead

    asyncio.run(scenario())


def test_the_worker_of_a_single_slot_is_not_asked(actors: list[FakeActor]) -> None:
    async def scenario() -> None:
        fleet = await started("a")
        assert await fleet.recover(("a",)) == ("a",)
        assert actors[0].num_releases == 0
        assert actors[0].is_dead

    asyncio.run(scenario())


def test_workers_that_start_later_leave_the_others_alone(actors: list[FakeActor]) -> None:
    async def scenario() -> None:
        fleet = await started("a")
        actors[0].is_dead = True  # it would not answer again
        await fleet.start([slot_of("b")])
        assert fleet.ready == ("a", "b")

    asyncio.run(scenario())
