"""A gang that is called to training: when it goes, and everything that may come between."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from controller_fakes import make_gang, run_context
from hypothesis import given, settings
from hypothesis import strategies as st
from simulated_run import SimulatedRun, ask, make_config, simulate
from simulated_world import Speeds, World
from virtual_time import run_virtual

from rlserve.config.tree import RunConfig
from rlserve.controller.calls import Calls
from rlserve.controller.clock import RunClock
from rlserve.controller.gang_book import GangBook
from rlserve.engine.config import EngineConfig
from rlserve.manager.config import StaticConfig
from rlserve.manager.gang_table import GangState
from rlserve.manager.measurement.figures import Measurements, TrainRate
from rlserve.pool.gangs import Gang
from rlserve.pool.notices.base import Notice
from rlserve.rollout.config import RolloutConfig
from rlserve.tracking.events import FailureEvent, MoveEvent, SlotEvent
from rlserve.tracking.run_folder import RunFolder

GANGS = (make_gang("t0"), make_gang("t1"), make_gang("r0"), make_gang("r1"))
TO_ROLLOUT = (GangState.IDLE, GangState.JOINING_ROLLOUT, GangState.ROLLOUT)
TO_TRAIN = (GangState.IDLE, GangState.JOINING_TRAIN, GangState.TRAIN)


class Setting:
    """Two gangs train, 20 s a step, and two roll out, which they leave in 2 s. It is second 0 of virtual time."""

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self.context = run_context(clock=RunClock(started=loop.time(), read=loop.time))
        self.book = GangBook(self.context, GANGS)
        for gang in GANGS:
            for state in TO_TRAIN if gang.id.startswith("t") else TO_ROLLOUT:
                self.book.move(gang, state, "test")
        self.trainers = SimpleNamespace(members=("t0", "t1"), num_tokens=1000, step_begin_s=None)
        self.waiting = False
        rate = TrainRate(
            types=("cpu", "cpu"), step_s=20.0, tokens_per_s=50.0, token_s=0.02, early_s=0.0, num_steps=8, last_s=0.0
        )
        self.measured = Measurements(train=(rate,), leave_s=2.0)
        fakes: Any = self
        self.calls = Calls(self.context, self.book, trainers=fakes.trainers, load=fakes, measuring=fakes)

    def read(self) -> Any:
        return SimpleNamespace(trainer_waiting=self.waiting)

    def figures(self) -> Measurements:
        return self.measured

    def set(self, *, step_begin_s: float | None = None, waiting: bool = False) -> None:
        """What the trainers do from now on."""
        self.trainers.step_begin_s, self.waiting = step_begin_s, waiting
        self.context.changed.notify()

    def state(self, gang_id: str) -> GangState:
        return self.book.state(self.book[gang_id])


def on_virtual_time(scenario: Callable[[Setting], Awaitable[None]]) -> None:
    async def whole() -> None:
        await scenario(Setting())

    run_virtual(whole())


def called(setting: Setting, gang_id: str = "r0") -> asyncio.Task[tuple[bool, float]]:
    """Whether a gang that is called has to go, and since when that is known."""

    async def ready() -> tuple[bool, float]:
        found = await setting.calls.ready(setting.book[gang_id], "test")
        return found, asyncio.get_running_loop().time()

    return asyncio.create_task(ready())


def test_it_generates_until_the_step_is_about_to_end() -> None:
    async def scenario(setting: Setting) -> None:
        setting.set(step_begin_s=0.0)
        call = called(setting)
        await asyncio.sleep(17.0)
        assert setting.state("r0") is GangState.CALLED_TO_TRAIN
        assert setting.calls.pending
        assert await call == (True, 18.0)
        assert setting.calls.answered(GANGS[2])
        assert not setting.calls.pending
        assert setting.calls.patience_s(18.0) == 10.0
        setting.set()  # the step ends
        await asyncio.sleep(1.0)
        assert setting.calls.patience_s(18.0) == 10.0, "1 s more costs two trainers less than a gang loses in a step"

    on_virtual_time(scenario)


def test_it_looks_again_when_a_step_begins_or_ends() -> None:
    """At first its leave would cost the trainers more than a step costs it; and then a step ends early."""

    async def scenario(setting: Setting) -> None:
        setting.measured = Measurements(train=setting.measured.train, leave_s=11.0)
        call = called(setting)
        await asyncio.sleep(5.0)
        setting.set(step_begin_s=5.0)
        await asyncio.sleep(3.0)
        assert not call.done()
        setting.set(waiting=True)
        assert await call == (True, 8.0)

    on_virtual_time(scenario)


def test_where_the_trainers_wait_for_a_batch_it_goes_at_once() -> None:
    async def scenario(setting: Setting) -> None:
        setting.set(waiting=True)
        assert await called(setting) == (True, 0.0)

    on_virtual_time(scenario)


def lose(setting: Setting, gang: Gang) -> None:
    setting.book.move(gang, GangState.DEAD, "died")


def tell_to_leave(setting: Setting, gang: Gang) -> None:
    setting.book.leaving[gang.id] = "a notice"
    setting.context.changed.notify()


BETWEEN: dict[str, tuple[Callable[[Setting], None], GangState]] = {
    "a user moves gangs": (lambda setting: setting.calls.call_off("a user moves gangs"), GangState.ROLLOUT),
    "its worker dies": (lambda setting: lose(setting, GANGS[2]), GangState.DEAD),
    "another worker dies": (lambda setting: lose(setting, GANGS[0]), GangState.ROLLOUT),
    "it is told to leave": (lambda setting: tell_to_leave(setting, GANGS[2]), GangState.ROLLOUT),
    "another is told to leave": (lambda setting: tell_to_leave(setting, GANGS[3]), GangState.ROLLOUT),
}


@pytest.mark.parametrize("what", BETWEEN)
def test_whatever_comes_between_calls_it_off_at_once(what: str) -> None:
    interfere, state = BETWEEN[what]

    async def scenario(setting: Setting) -> None:
        setting.set(step_begin_s=0.0)
        call = called(setting)
        await asyncio.sleep(7.0)
        interfere(setting)
        assert await call == (False, 7.0)
        assert setting.state("r0") is state
        assert not setting.calls.pending
        assert not setting.calls.answered(GANGS[2])

    on_virtual_time(scenario)


@pytest.mark.parametrize("what", BETWEEN)
def test_what_comes_after_it_was_time_and_before_it_went_calls_it_off_too(what: str) -> None:
    interfere, state = BETWEEN[what]

    async def scenario(setting: Setting) -> None:
        setting.set(waiting=True)
        assert await called(setting) == (True, 0.0)
        interfere(setting)
        assert not setting.calls.answered(GANGS[2])
        assert setting.state("r0") is state

    on_virtual_time(scenario)


def test_a_notice_from_before_the_call_does_not_call_it_off_and_one_gang_is_called_at_a_time() -> None:
    async def scenario(setting: Setting) -> None:
        tell_to_leave(setting, GANGS[3])
        setting.set(step_begin_s=0.0)
        call = called(setting)
        await asyncio.sleep(1.0)
        assert await called(setting, "r1") == (False, 1.0)
        assert setting.state("r1") is GangState.ROLLOUT
        assert await call == (True, 18.0)

    on_virtual_time(scenario)


ACTIONS = ("call r0", "call r1", "step begins", "step ends", "wait", "notice", "call off", "lose r0", "lose r1", "go")


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(ACTIONS), st.floats(0.01, 30.0)), max_size=15))
def test_whatever_happens_in_whatever_order_one_gang_at_most_is_called_and_no_call_is_forgotten(
    story: list[tuple[str, float]],
) -> None:
    async def act(setting: Setting, action: str) -> None:
        gang_id, dead = action.rpartition(" ")[2], GangState.DEAD
        match action.split():
            case ["call", "off"]:
                setting.calls.call_off("test")
            case ["call", _] if setting.state(gang_id) is GangState.ROLLOUT:
                calls.append(called(setting, gang_id))
            case ["lose", _] if setting.state(gang_id) is not dead:
                lose(setting, setting.book[gang_id])
            case ["step", "begins"]:
                setting.set(step_begin_s=asyncio.get_running_loop().time())
            case ["step", "ends"]:
                setting.set()
            case ["wait"]:
                setting.set(waiting=True)
            case ["notice"]:
                tell_to_leave(setting, GANGS[1])
            case ["go"]:
                for gang in GANGS[2:]:
                    if setting.state(gang.id) is GangState.CALLED_TO_TRAIN and setting.calls.answered(gang):
                        setting.book.move(gang, GangState.LEAVING_ROLLOUT, "test")

    calls: list[asyncio.Task[tuple[bool, float]]] = []

    async def scenario(setting: Setting) -> None:
        for action, pause_s in story:
            await act(setting, action)
            await asyncio.sleep(pause_s)
            in_call = setting.book.table.in_state(GangState.CALLED_TO_TRAIN)
            assert len(in_call) <= setting.calls.pending, "one that has ended may not be noticed yet"
        setting.calls.call_off("the run ends")
        assert not setting.book.table.in_state(GangState.CALLED_TO_TRAIN)
        await asyncio.wait_for(asyncio.gather(*calls), 1.0)
        setting.book.table.check_integrity()

    on_virtual_time(scenario)


# Whole runs: three train, 20 s a step, and three roll out


def run_config() -> RunConfig:
    return make_config(
        num_steps=14,
        rollout=RolloutConfig(
            prompts_per_step=4, samples_per_prompt=2, max_staleness=2, engine=EngineConfig(max_num_sequences=8)
        ),
        manager=StaticConfig(),
    )


def whole_run(tmp_path: Path, user: Callable[[SimulatedRun], Awaitable[None]]) -> SimulatedRun:
    """``user`` comes in the middle of a step, when steps have been measured."""

    async def in_mid_step(run: SimulatedRun) -> None:
        while len(run.trained) < 4 * 4:
            await asyncio.sleep(0.1)
        await asyncio.sleep(5.0)
        await user(run)

    world = World(speeds=Speeds(step_s=60.0), lengths=(80, 80))
    run = simulate(run_config(), RunFolder.create(tmp_path, "run"), world=world, disturb=in_mid_step)
    run.check(max_staleness=2)
    return run


def history(run: SimulatedRun, slot_id: str) -> dict[str, float]:
    """When a slot last came to each state."""
    return {event.state: event.time_s for event in run.tracker.of(SlotEvent) if event.slot_id == slot_id}


async def until_in(run: SimulatedRun, slot_id: str, *states: GangState) -> None:
    while [event.state for event in run.tracker.of(SlotEvent) if event.slot_id == slot_id][-1] not in states:
        await asyncio.sleep(0.1)


def test_a_move_to_training_costs_no_step_of_generation(tmp_path: Path) -> None:
    answers: list[dict[str, Any]] = []

    async def user(run: SimulatedRun) -> None:
        answers.append(await ask(run, "move", "cpu/5", "train"))

    run = whole_run(tmp_path, user)
    assert answers[0]["outcome"] == "done"
    entered = history(run, "cpu/5")
    assert entered["leaving_rollout"] - entered["called_to_train"] > 10.0
    assert entered["train"] - entered["leaving_rollout"] < 3.0
    (move,) = run.tracker.of(MoveEvent)
    assert (move.begin_s, move.time_s) == (entered["leaving_rollout"], entered["train"])
    assert move.trainer_pause_s < 1.0


def test_a_gang_that_is_called_and_told_to_leave_goes_at_once(tmp_path: Path) -> None:
    times: list[float] = []

    async def user(run: SimulatedRun) -> None:
        asking = asyncio.create_task(ask(run, "move", "cpu/5", "train"))
        await until_in(run, "cpu/5", GangState.CALLED_TO_TRAIN)
        run.fleet.workers["cpu/5"].notice = Notice(reason="its process was sent SIGTERM")
        begun_s = asyncio.get_running_loop().time()
        await until_in(run, "cpu/5", GangState.GONE)
        times.append(asyncio.get_running_loop().time() - begun_s)
        assert (await asking)["outcome"] == "refused"

    run = whole_run(tmp_path, user)
    assert times[0] < 8.0, "with the next sign of life"
    assert run.tracker.of(FailureEvent) == []


def test_a_gang_that_dies_while_it_is_called_rolls_out_again_and_then_goes(tmp_path: Path) -> None:
    answers: list[dict[str, Any]] = []

    async def user(run: SimulatedRun) -> None:
        asking = asyncio.create_task(ask(run, "move", "cpu/5", "train"))
        await until_in(run, "cpu/5", GangState.CALLED_TO_TRAIN)
        run.fleet.workers["cpu/5"].kill()
        await until_in(run, "cpu/5", GangState.ROLLOUT)
        answers.append(await asking)
        answers.append(await ask(run, "move", "cpu/5", "train"))

    run = whole_run(tmp_path, user)
    assert [answer["outcome"] for answer in answers] == ["refused", "done"]
    assert run.controller.summary().worker_failures == 1


def test_a_run_that_ends_while_a_gang_is_called_leaves_it_where_it_was(tmp_path: Path) -> None:
    answers: list[dict[str, Any]] = []

    async def user(run: SimulatedRun) -> None:
        asking = asyncio.create_task(ask(run, "move", "cpu/5", "train"))
        await until_in(run, "cpu/5", GangState.CALLED_TO_TRAIN)
        run.controller.request_stop()
        answers.append(await asking)

    run = whole_run(tmp_path, user)
    assert run.controller.stopped_early
    states = {event.slot_id: event.state for event in run.tracker.of(SlotEvent)}
    assert states["cpu/5"] in ("rollout", "train"), "it stayed, or had gone at the end of the step"
