"""The heartbeat on fake workers: who is silent for the timeout is ended, and nobody else."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from controller_fakes import FakeFleet, settled, unfinished

from rlserve.controller.events import EventBus
from rlserve.controller.heartbeat import Heartbeat

ROUNDS = 5
"""That may be missed: the timeout over the interval."""


def run(scenario: Callable[[Heartbeat, FakeFleet], Awaitable[None]]) -> None:
    async def whole() -> None:
        fleet: Any = FakeFleet(("a", "b"))
        await scenario(Heartbeat(fleet, EventBus(), interval_s=2.0, timeout_s=10.0), fleet)

    asyncio.run(whole())


async def beat(heartbeat: Heartbeat, num_rounds: int) -> None:
    for _ in range(num_rounds):
        heartbeat.beat()
        await settled()


def kills(fleet: FakeFleet) -> list[str]:
    return [slot_id for slot_id, what in fleet.log if what == "KILL"]


def test_a_worker_that_stands_still_is_ended_after_the_timeout_and_the_others_go_on() -> None:
    async def scenario(heartbeat: Heartbeat, fleet: FakeFleet) -> None:
        with unfinished(fleet["b"], "ping"):
            await beat(heartbeat, ROUNDS)
            assert kills(fleet) == []
            await beat(heartbeat, 1)
            assert kills(fleet) == ["b"]
            assert fleet.log.count(("a", "ping")) == ROUNDS + 1
            await beat(heartbeat, 3)
        assert kills(fleet) == ["b"], "once"

    run(scenario)


def test_whoever_waits_for_a_silent_worker_hears_of_it_when_it_is_ended() -> None:
    async def scenario(heartbeat: Heartbeat, fleet: FakeFleet) -> None:
        worker = fleet["b"]
        with unfinished(worker, "step"), unfinished(worker, "ping"):
            step = asyncio.ensure_future(worker.step.remote())
            await beat(heartbeat, ROUNDS + 1)
            assert step.done()
            step.exception()

    run(scenario)


def test_a_late_answer_is_an_answer() -> None:
    """A worker in its first compilation may be slow, again and again."""

    async def scenario(heartbeat: Heartbeat, fleet: FakeFleet) -> None:
        for _ in range(4):
            with unfinished(fleet["b"], "ping") as answer:
                await beat(heartbeat, ROUNDS)
                answer.set_result(None)
                await settled()
        await beat(heartbeat, 1)
        assert kills(fleet) == []

    run(scenario)


def test_a_silent_worker_that_uses_the_processor_is_given_more_time_and_a_stopped_one_is_not() -> None:
    """On an overloaded machine a ping may wait for long; a stopped process uses no time at all."""

    async def scenario(heartbeat: Heartbeat, fleet: FakeFleet) -> None:
        fleet.used_s = {"a": 1.0, "b": 1.0}
        with unfinished(fleet["a"], "ping"), unfinished(fleet["b"], "ping"):
            for _ in range(ROUNDS + 1):
                fleet.used_s["b"] += 0.01
                await beat(heartbeat, 1)
            assert kills(fleet) == ["a"]
            for _ in range(5 * ROUNDS - 1):
                fleet.used_s["b"] += 0.01
                await beat(heartbeat, 1)
            assert kills(fleet) == ["a"]
            await beat(heartbeat, 1)
            assert kills(fleet) == ["a", "b"], "but not for ever"

    run(scenario)


def test_a_worker_that_is_stopped_after_it_was_busy_is_found_as_soon() -> None:
    async def scenario(heartbeat: Heartbeat, fleet: FakeFleet) -> None:
        fleet.used_s = {"b": 1.0}
        with unfinished(fleet["b"], "ping"):
            await beat(heartbeat, 3)
            fleet.used_s["b"] = 2.0
            await beat(heartbeat, ROUNDS)
            assert kills(fleet) == []
            await beat(heartbeat, 1)
            assert kills(fleet) == ["b"]

    run(scenario)


def test_a_new_worker_does_not_answer_for_the_silence_of_the_one_before() -> None:
    async def scenario(heartbeat: Heartbeat, fleet: FakeFleet) -> None:
        with unfinished(fleet["b"], "ping"):
            await beat(heartbeat, ROUNDS)
        await fleet.recover(("b",))
        with unfinished(fleet["b"], "ping"):
            await beat(heartbeat, ROUNDS)
            assert kills(fleet) == []
            await beat(heartbeat, 1)
        assert kills(fleet) == ["b"]

    run(scenario)


def test_a_worker_that_died_is_left_to_those_who_call_it() -> None:
    async def scenario(heartbeat: Heartbeat, fleet: FakeFleet) -> None:
        fleet["b"].kill()
        await beat(heartbeat, 2 * ROUNDS)
        assert kills(fleet) == []

    run(scenario)
