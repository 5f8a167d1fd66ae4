"""The heartbeat on fake workers: who stands still for the timeout is ended, who died is known at once, nobody else."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from controller_fakes import FakeFleet, FakeWorker, recorded, run_context, settled, unfinished

from rlserve.controller.events import WorkerDied, WorkerNotified
from rlserve.controller.heartbeat import Heartbeat
from rlserve.controller.worker_book import WorkerBook
from rlserve.errors import WorkerFailedError
from rlserve.pool.base import SignOfLife
from rlserve.pool.notices.base import Notice
from rlserve.pool.worker_table import WorkerState
from rlserve.tracking.events import WorkerStateEvent

ROUNDS = 5
"""In which a worker may stand still: the timeout over the interval."""


class LivingWorker(FakeWorker):
    """Gives a sign of life whenever the test lets a round go by."""

    def __init__(self, slot_id: str, log: list[tuple[str, str]]) -> None:
        super().__init__(slot_id, log)
        self.sign: SignOfLife | Exception | None = SignOfLife()
        """What it says in each round; None: nothing."""
        self._asked: list[asyncio.Future[SignOfLife]] = []

    async def call(self, method: str, arguments: tuple[Any, ...]) -> Any:
        if method != "sign_of_life" or self.dead:
            return await super().call(method, arguments)
        asked: asyncio.Future[SignOfLife] = asyncio.get_running_loop().create_future()
        self._asked.append(asked)
        self._pending.add(asked)
        return await asked

    def round(self) -> None:
        """It answers, if it does, whoever has asked."""
        asked, self._asked = self._asked, []
        for each in asked:
            if self.sign is None:
                self._asked.append(each)
            elif isinstance(self.sign, Exception):
                each.set_exception(self.sign)
            elif not each.done():
                each.set_result(self.sign)


class Setting:
    """A heartbeat over two workers that have a role."""

    def __init__(self) -> None:
        self.run = run_context()
        self.fleet: Any = FakeFleet(("a", "b"), LivingWorker)
        self.workers = WorkerBook(self.run.events, self.run.clock)
        self.deaths = recorded(self.run.events, WorkerDied)
        self.notices = recorded(self.run.events, WorkerNotified)
        self.states = recorded(self.run.events, WorkerStateEvent)
        for slot_id in ("a", "b"):
            self.workers.add(slot_id)
            self.workers.has_role(slot_id, "train")
        self.heartbeat = Heartbeat(self.fleet, self.workers, self.run.events, interval_s=2.0, timeout_s=10.0)

    async def look(self, num_rounds: int) -> None:
        for _ in range(num_rounds):
            for worker in self.fleet.workers.values():
                worker.round()
            await settled()
            self.heartbeat.look()
            await settled()

    @property
    def killed(self) -> list[str]:
        return [slot_id for slot_id, what in self.fleet.log if what == "KILL"]


def run(scenario: Callable[[Setting], Awaitable[None]]) -> None:
    async def whole() -> None:
        setting = Setting()
        await setting.look(1)  # the watch begins
        await scenario(setting)

    asyncio.run(whole())


def test_a_worker_that_stands_still_is_ended_after_the_timeout_and_the_others_go_on() -> None:
    async def scenario(setting: Setting) -> None:
        setting.fleet["b"].sign = None
        await setting.look(ROUNDS - 1)
        assert setting.killed == []
        await setting.look(1)
        assert setting.killed == ["b"]
        assert [(death.slot_id, death.worker.slot_id) for death in setting.deaths] == [("b", "b")]
        assert "pool.health_timeout_s=10" in str(setting.deaths[0].error)
        await setting.look(3)
        assert setting.killed == ["b"], "once"

    run(scenario)


def test_whoever_waits_for_a_silent_worker_hears_of_it_when_it_is_ended() -> None:
    async def scenario(setting: Setting) -> None:
        worker = setting.fleet["b"]
        worker.sign = None
        with unfinished(worker, "step"):
            step = asyncio.ensure_future(worker.step.remote())
            await setting.look(ROUNDS)
            assert step.done()
            step.exception()

    run(scenario)


def test_a_worker_that_dies_is_known_to_be_dead_before_the_next_round() -> None:
    async def scenario(setting: Setting) -> None:
        setting.fleet["b"].kill()
        await settled()
        assert [death.slot_id for death in setting.deaths] == ["b"]
        assert setting.workers.state("b") is WorkerState.DEAD
        await setting.look(3)
        assert len(setting.deaths) == 1, "once"

    run(scenario)


def test_a_worker_that_the_run_has_ended_is_no_news() -> None:
    async def scenario(setting: Setting) -> None:
        setting.fleet.kill("b", "its time is over")
        await setting.look(2)
        assert setting.deaths == []

    run(scenario)


def test_a_late_answer_is_an_answer_and_ends_the_suspicion() -> None:
    """A worker in its first compilation may be slow, again and again."""

    async def scenario(setting: Setting) -> None:
        worker = setting.fleet["b"]
        for _ in range(3):
            worker.sign = None
            await setting.look(ROUNDS - 1)
            assert setting.workers.state("b") is WorkerState.SUSPECT
            worker.sign = SignOfLife()
            await setting.look(1)
            assert setting.workers.state("b") is WorkerState.HEALTHY
        assert setting.killed == []
        assert [event.state for event in setting.states if event.slot_id == "b"][-2:] == ["suspect", "healthy"]

    run(scenario)


def test_a_silent_worker_that_uses_the_processor_is_given_more_time_and_a_stopped_one_is_not() -> None:
    """On an overloaded machine an answer may take long; a stopped process uses no time at all."""

    async def scenario(setting: Setting) -> None:
        fleet = setting.fleet
        fleet.used_s = {"a": 1.0, "b": 1.0}
        await setting.look(1)
        fleet["a"].sign = fleet["b"].sign = None
        for _ in range(ROUNDS):
            fleet.used_s["b"] += 0.01
            await setting.look(1)
        assert setting.killed == ["a"]
        for _ in range(5 * ROUNDS - 1):
            fleet.used_s["b"] += 0.01
            await setting.look(1)
        assert setting.killed == ["a"]
        await setting.look(1)
        assert setting.killed == ["a", "b"], "but not for ever"

    run(scenario)


def test_one_that_is_seen_to_be_stopped_is_ended_sooner() -> None:
    async def scenario(setting: Setting) -> None:
        setting.fleet["b"].sign, setting.fleet.stopped = None, {"b"}
        await setting.look(1)
        assert (setting.killed, setting.workers.state("b")) == ([], WorkerState.SUSPECT)
        await setting.look(1)
        assert setting.killed == ["b"]
        assert str(setting.deaths[0].error) == "b is stopped by a signal for 4 s"

    run(scenario)


def test_a_worker_that_answers_and_computes_without_the_processor_is_wedged() -> None:
    async def scenario(setting: Setting) -> None:
        fleet = setting.fleet
        fleet.used_s, fleet.running = {"a": 1.0, "b": 1.0}, {"a"}  # a is starved
        await setting.look(1)
        fleet["a"].sign = fleet["b"].sign = SignOfLife(is_computing=True)
        await setting.look(ROUNDS)
        assert setting.killed == ["b"]
        assert "without using the processor" in str(setting.deaths[0].error)
        assert setting.workers.state("a") is WorkerState.HEALTHY

    run(scenario)


def test_a_new_worker_does_not_answer_for_the_silence_of_the_one_before() -> None:
    async def scenario(setting: Setting) -> None:
        setting.fleet["b"].sign = None
        await setting.look(ROUNDS - 1)
        setting.workers.ended("b", "lost")
        await setting.fleet.recover(("b",), on_restart=setting.workers.restarting)
        setting.fleet["b"].sign = None
        await setting.look(ROUNDS)  # of which the first finds it
        assert setting.killed == []
        await setting.look(1)
        assert setting.killed == ["b"]

    run(scenario)


def test_a_worker_that_raises_is_not_heard_and_goes_on_being_asked() -> None:
    async def scenario(setting: Setting) -> None:
        setting.fleet["b"].sign = WorkerFailedError("its answer cannot be read")
        await setting.look(ROUNDS)
        assert setting.killed == ["b"]

    run(scenario)


def test_what_a_worker_was_told_is_passed_on() -> None:
    async def scenario(setting: Setting) -> None:
        notice = Notice(reason="its machine goes")
        setting.fleet["b"].sign = SignOfLife(notice=notice)
        await setting.look(1)
        assert [(event.slot_id, event.notice) for event in setting.notices] == [("b", notice)]

    run(scenario)
