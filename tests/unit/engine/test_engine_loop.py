"""The engine in a thread of its own: every answer once, commands only between steps."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from engine_builders import END_S
from engine_fakes import FakeEngine, requests_of

from rlserve.engine import Engine, EngineLoop, RequestOutput
from rlserve.engine.loop import AnswerSubscription
from rlserve.engine.stats.step_work import NO_WORK, StepWork
from rlserve.errors import WorkerFailedError


def _read_all(subscription: AnswerSubscription) -> list[str]:
    found: list[str] = []
    while not subscription.is_closed:
        found += [output.request_id for output in subscription.read(END_S)]
    return found


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture
def loop(engine: Any) -> EngineLoop:
    return EngineLoop(engine)


def test_every_answer_comes_exactly_once_and_to_whom_it_belongs(loop: EngineLoop) -> None:
    names = [f"request {number}" for number in range(200)]
    ours, theirs = loop.subscribe_answers(), loop.subscribe_answers()
    with ThreadPoolExecutor() as threads:
        read = threads.submit(_read_all, ours)
        for start in range(0, 200, 7):
            loop.submit(requests_of(*names[start : start + 7]), ours)
        loop.submit(requests_of("theirs"), theirs)
        partials = [output.request_id for output in loop.stop()]
        finished = read.result(timeout=END_S)
    assert sorted(finished + _read_all(theirs) + partials) == sorted([*names, "theirs"])
    assert "theirs" not in finished


def test_the_loop_computes_while_its_engine_is_in_a_step(
    engine: FakeEngine, loop: EngineLoop, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, may_end, step = threading.Event(), threading.Event(), engine.step

    def slow_step() -> list[RequestOutput]:
        begun.set()
        assert may_end.wait(END_S)
        return step()

    monkeypatch.setattr(engine, "step", slow_step)
    assert not loop.is_computing
    answers = loop.subscribe_answers()
    loop.submit(requests_of("one"), answers)
    assert begun.wait(END_S)
    assert loop.is_computing
    may_end.set()
    while not answers.read(END_S):
        pass
    loop.stop()
    assert not loop.is_computing


def test_an_id_that_is_in_the_engine_is_refused_and_does_not_end_the_other(
    engine: FakeEngine, loop: EngineLoop
) -> None:
    engine.is_paused = True
    ours, theirs = loop.subscribe_answers(), loop.subscribe_answers()
    loop.submit(requests_of("a"), ours)
    loop.submit(requests_of("a"), theirs)
    (refused,) = theirs.read(END_S)
    assert refused.error == "a request with id 'a' is in the engine already"
    assert engine.events == ["add a"]
    assert [output.request_id for output in loop.stop()] == ["a"]


def test_only_time_within_steps_counts_as_busy(engine: Any) -> None:
    seconds = itertools.count()  # each look at the clock takes one
    loop = EngineLoop(engine, clock=lambda: float(next(seconds)))
    answers = loop.subscribe_answers()
    loop.submit(requests_of("a", "b", "c"), answers)
    assert answers.read(END_S)
    assert loop.stats.busy_s == loop.stats.num_steps >= 1
    loop.stop()


class FakePace:
    """Holds each step up until it is let go."""

    def __init__(self) -> None:
        self.is_over = False
        self.works: list[StepWork] = []
        self.goes_on: list[bool] = []

    def computed(self, start_s: float, work: StepWork) -> None:
        self.works.append(work)

    def left_s(self) -> float:
        return 0.0 if self.is_over else END_S

    def ended(self, *, goes_on: bool) -> None:
        self.goes_on.append(goes_on)


def test_a_paced_step_hands_nothing_out_before_its_end_and_commands_do_not_wait_for_it(engine: Any) -> None:
    pace = FakePace()
    loop = EngineLoop(engine, pace=pace)
    answers = loop.subscribe_answers()
    loop.submit(requests_of("a", "b"), answers)
    assert engine.in_step.wait(END_S)
    loop.run(lambda _: engine.events.append("command"))
    assert answers.read(0.0) == ()
    assert engine.events.count("step ends") == 1, "the next step waits for the end of this one"
    pace.is_over = True
    loop.run(lambda _: None)  # wakes it up
    found = _read_until(answers, 2)
    loop.stop()
    assert found == ["a", "b"]
    assert pace.goes_on == [True, False]
    assert pace.works == [NO_WORK, NO_WORK]


def test_a_stop_in_a_paced_step_hands_out_what_was_computed(engine: Any) -> None:
    loop = EngineLoop(engine, pace=FakePace())
    answers = loop.subscribe_answers()
    loop.submit(requests_of("a", "b"), answers)
    assert engine.in_step.wait(END_S)
    partials = loop.stop()
    assert [output.request_id for output in partials] == ["b"]
    assert _read_all(answers) == ["a"]


def _read_until(subscription: AnswerSubscription, number: int) -> list[str]:
    found: list[str] = []
    while len(found) < number:
        found += [output.request_id for output in subscription.read(END_S)]
    return found


def test_the_samples_of_a_step_are_weighted_by_its_time(engine: Any) -> None:
    seconds = itertools.count()
    engine.is_paused = True
    loop = EngineLoop(engine, clock=lambda: 2.0 * next(seconds))
    answers = loop.subscribe_answers()
    loop.submit(requests_of("a", "b", "c"), answers)
    loop.run(lambda _: setattr(engine, "is_paused", False))
    found: list[RequestOutput] = []
    while len(found) < 3:
        found += answers.read(END_S)
    loop.stop()
    # One ends in each step of 2 s. The first sees those that it leaves, the others those that they begin with.
    assert (loop.stats.busy_s, loop.stats.running_s) == (6.0, 2.0 * (2 + 2 + 1))


def test_the_first_token_and_the_longest_gap_between_steps_are_timed_without_the_time_in_which_there_was_no_work(
    engine: FakeEngine,
) -> None:
    now, ends, step = [10.0], iter((12.0, 17.0, 101.0)), engine.step

    def timed_step() -> list[RequestOutput]:
        now[0] = next(ends)
        return step()

    engine.step = timed_step  # type: ignore[method-assign]
    engine.is_paused = True
    whole: Any = engine
    loop = EngineLoop(whole, clock=lambda: now[0])
    answers = loop.subscribe_answers()
    loop.submit(requests_of("a", "b"), answers)
    loop.run(lambda _: setattr(engine, "is_paused", False))
    assert _read_until(answers, 2) == ["a", "b"]
    assert loop.take_longest_gap_s() == 17.0 - 12.0
    assert loop.take_longest_gap_s() == 0.0, "it is told once"
    loop.run(lambda _: now.__setitem__(0, 100.0))
    loop.submit(requests_of("c"), answers)
    assert _read_until(answers, 1) == ["c"]
    assert loop.take_longest_gap_s() == 101.0 - 100.0
    assert loop.stats.first_token_s == 12.0
    loop.stop()


def test_functions_run_only_between_steps(engine: FakeEngine, loop: EngineLoop) -> None:
    engine.gate.clear()
    loop.submit(requests_of("a", "b"), loop.subscribe_answers())
    assert engine.in_step.wait(END_S)
    with ThreadPoolExecutor() as threads:
        running = threads.submit(loop.run, lambda engine: (threading.current_thread().name, len(engine.events)))  # type: ignore[attr-defined]
        engine.gate.set()
        name, place = running.result(timeout=END_S)
    loop.stop()
    before = engine.events[:place]
    assert name == "engine"
    assert before.count("step begins") == before.count("step ends")


def test_an_error_of_a_function_is_its_callers_and_the_engine_goes_on(loop: EngineLoop) -> None:
    def refuse(engine: Engine) -> None:
        raise ValueError("not these")

    with pytest.raises(ValueError, match="not these"):
        loop.run(refuse)
    answers = loop.subscribe_answers()
    loop.submit(requests_of("a"), answers)
    assert [output.request_id for output in answers.read(END_S)] == ["a"]
    loop.stop()


def test_stop_returns_what_is_unfinished(engine: FakeEngine, loop: EngineLoop) -> None:
    engine.gate.clear()
    answers = loop.subscribe_answers()
    loop.submit(requests_of("a", "b", "c"), answers)
    assert engine.in_step.wait(END_S)
    with ThreadPoolExecutor() as threads:
        stopping = threads.submit(loop.stop)
        engine.gate.set()
        partials = [output.request_id for output in stopping.result(timeout=END_S)]
    finished = _read_all(answers)
    assert sorted(finished + partials) == ["a", "b", "c"]
    assert finished[0] == "a"


def test_nothing_is_taken_once_it_stops(engine: FakeEngine, loop: EngineLoop) -> None:
    answers = loop.subscribe_answers()
    loop.stop()
    calls: list[Callable[[], object]] = [
        lambda: loop.submit(requests_of("late"), answers),
        lambda: loop.run(lambda engine: None),
        lambda: loop.abort(["late"]),
        loop.stop,
    ]
    for call in calls:
        with pytest.raises(WorkerFailedError, match="the engine loop is stopping"):
            call()
    assert engine.events == []
    assert (answers.read(END_S), answers.is_closed) == ((), True)


def test_an_engine_that_fails_is_reported_to_all(engine: FakeEngine, loop: EngineLoop) -> None:
    engine.gate.clear()
    answers, deltas = loop.subscribe_answers(), loop.subscribe_deltas()
    loop.submit(requests_of("a"), answers)
    assert engine.in_step.wait(END_S)
    engine.failure = RuntimeError("out of memory")
    queued = threading.Event()
    put, loop._commands.put = loop._commands.put, lambda command: (put(command), queued.set())[0]  # type: ignore[method-assign]
    with ThreadPoolExecutor() as threads:
        waiting = [threads.submit(loop.run, lambda engine: None), threads.submit(deltas.read, END_S)]
        assert queued.wait(END_S)
        engine.gate.set()
        for each in waiting:
            with pytest.raises(WorkerFailedError, match=r"the engine stopped: .*out of memory"):
                each.result(timeout=END_S)
    for call in (lambda: answers.read(END_S), lambda: loop.submit(requests_of("b"), answers), loop.stop):
        with pytest.raises(WorkerFailedError, match="out of memory"):
            call()


def test_a_poll_without_answers_ends_by_itself(loop: EngineLoop) -> None:
    answers = loop.subscribe_answers()
    assert answers.read(0.0) == ()
    assert not answers.is_closed
    loop.stop()


def test_requests_are_queued_while_a_step_is_under_way(engine: FakeEngine, loop: EngineLoop) -> None:
    """A first step may compile for minutes: whoever hands requests over must not wait for it."""
    engine.gate.clear()
    answers = loop.subscribe_answers()
    loop.submit(requests_of("a"), answers)
    assert engine.in_step.wait(END_S)
    for name in "bcdefghijk":
        loop.submit(requests_of(name), answers)
    assert engine.events == ["add a", "step begins"]
    engine.gate.set()
    found: list[str] = []
    while len(found) < 11:
        found += [output.request_id for output in answers.read(END_S)]
    assert found == list("abcdefghijk")
    loop.stop()


def test_the_loop_sleeps_while_the_engine_is_paused(engine: FakeEngine, loop: EngineLoop) -> None:
    def pause(engine: Any) -> None:
        engine.is_paused = True

    loop.run(pause)
    answers = loop.subscribe_answers()
    loop.submit(requests_of("a"), answers)
    loop.run(lambda engine: None)
    assert answers.read(0.0) == ()
    assert engine.events == ["add a"]
    assert loop.stats.num_steps == 0
    loop.stop()


def test_whoever_wants_whole_answers_pays_nothing_for_deltas(engine: FakeEngine, loop: EngineLoop) -> None:
    answers, deltas = loop.subscribe_answers(), loop.subscribe_deltas()
    loop.submit(requests_of("a", "b"), answers)
    loop.submit(requests_of("c"), deltas)
    while "c" in engine.waiting or "add c" not in engine.events:
        answers.read(0.01)
    assert "new tokens" not in engine.events, "nobody reads the deltas either"
    assert [delta.request_id for delta in deltas.read(END_S)] == ["c"]
    loop.stop()
