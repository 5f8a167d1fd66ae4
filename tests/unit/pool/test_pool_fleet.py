"""The fleet with fake actors: who is replaced when a gang has lost a worker."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
from collections.abc import Awaitable, Iterator
from dataclasses import replace
from typing import Any

import psutil
import pytest
from pool_builders import make_spec
from ray.exceptions import RayActorError

from rlserve.pool.base import WorkerInfo, WorkerSpec
from rlserve.pool.fleet import Fleet
from rlserve.pool.slots import Slot
from rlserve.roofline.accelerators import slot_type


class FakeActor:
    """Answers ``info`` and ``release``; one that is dead answers nothing."""

    host = "elsewhere"

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
        return WorkerInfo(slot_id=self.spec.slot_id, process_id=self.spec.incarnation, host=self.host)


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
    restarted: list[str] = []

    async def scenario() -> None:
        fleet = await started("a", "b", "c")
        next(actor for actor in actors if actor.spec.slot_id == lost).is_dead = True
        assert await fleet.recover(("a", "b", "c"), on_restart=restarted.append) == (lost,)
        *_, new = actors
        assert (len(actors), new.spec.slot_id, new.spec.incarnation) == (4, lost, 1)
        assert all(actor.num_releases == 1 for actor in actors[:3])
        assert fleet.ready == tuple(sorted(fleet.ready, key=lambda slot_id: slot_id == lost))
        assert fleet.info(lost).process_id == 1
        assert restarted == [lost]

    asyncio.run(scenario())


def test_an_engine_that_failed_by_itself_costs_its_worker(actors: list[FakeActor]) -> None:
    restarted: list[str] = []

    async def scenario() -> None:
        fleet = await started("a", "b")
        assert await fleet.recover(("a", "b"), on_restart=restarted.append) == ("a",)
        assert actors[0].is_dead

    asyncio.run(scenario())


def test_the_worker_of_a_single_slot_is_not_asked(actors: list[FakeActor]) -> None:
    restarted: list[str] = []

    async def scenario() -> None:
        fleet = await started("a")
        assert await fleet.recover(("a",), on_restart=restarted.append) == ("a",)
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


@pytest.fixture
def process() -> Iterator[subprocess.Popen[bytes]]:
    """One that sleeps."""
    with subprocess.Popen(["sleep", "1000"]) as sleeping:
        yield sleeping
        sleeping.kill()


def test_a_stopped_process_of_this_machine_is_gone_at_once_whatever_ray_does(
    actors: list[FakeActor], process: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FakeActor, "host", socket.gethostname())
    monkeypatch.setattr("ray.kill", lambda actor, no_restart: None)

    async def scenario() -> None:
        fleet = Fleet(start_timeout_s=5.0)
        slot, spec = slot_of("a")
        await fleet.start([(slot, replace(spec, incarnation=process.pid))])  # which the actor gives as its process
        assert fleet.processor_s("a") is not None
        process.send_signal(signal.SIGSTOP)
        fleet.kill("a", "stopped")
        assert process.wait() == -signal.SIGKILL
        assert fleet.processor_s("a") is None

    asyncio.run(scenario())


def test_a_thread_that_has_a_processor_is_ready_to_run_and_one_that_sleeps_is_not(
    actors: list[FakeActor], process: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FakeActor, "host", socket.gethostname())

    async def scenario() -> None:
        fleet = Fleet(start_timeout_s=5.0)
        (slot, spec), (here, its_spec) = slot_of("a"), slot_of("b")
        await fleet.start(
            [(slot, replace(spec, incarnation=process.pid)), (here, replace(its_spec, incarnation=os.getpid()))]
        )
        while psutil.Process(process.pid).status() != psutil.STATUS_SLEEPING:
            pass  # it has not begun to sleep
        assert not fleet.is_ready_to_run("a")
        assert fleet.is_ready_to_run("b")
        assert not fleet.is_stopped("a")
        process.send_signal(signal.SIGSTOP)
        while not fleet.is_stopped("a"):
            pass  # the signal is on its way
        process.kill()
        process.wait()
        assert not fleet.is_stopped("a")
        assert not fleet.is_stopped("elsewhere")

    asyncio.run(scenario())
