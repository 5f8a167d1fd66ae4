"""The engine in a thread of its own: every answer once, commands only between steps, deltas that add up to it."""

from __future__ import annotations

import itertools
import random
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from engine_builders import BOTH_WAYS, engine_over_two_ranks, make_engine, make_request, run, save_model, weights_of
from engine_fakes import FakeEngine, requests_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rlserve.engine import (
    Engine,
    EngineLoop,
    FinishReason,
    GeneratedTokens,
    Request,
    RequestDelta,
    RequestOutput,
    SampleOutput,
)
from rlserve.engine.loop import AnswerSubscription, DeltaSubscription
from rlserve.engine.loop.commands import CommandQueue
from rlserve.engine.stats.step_work import NO_WORK, StepWork
from rlserve.errors import WorkerFailedError

END_S = 20.0


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


# -- commands and answers, on a fake engine ----------------------------------------------------------------------


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


# -- deltas, on a real engine -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("loop") / "model", "qwen3")


def _engine_that_pauses(folder: Path, num_steps: int) -> Engine:
    """An engine that pauses by itself after so many steps, so that a test need not hurry."""
    engine = make_engine(folder)
    step = engine.step

    def step_and_pause() -> list[RequestOutput]:
        outputs = step()
        if engine.stats().num_steps == num_steps:
            engine.pause("keep")
        return outputs

    engine.step = step_and_pause  # type: ignore[method-assign]
    return engine


def _go_on(engine: Engine) -> None:
    del engine.step  # type: ignore[misc]
    engine.resume()


class Assembly:
    """Puts deltas together again, and checks each on the way."""

    def __init__(self) -> None:
        self.tokens: dict[tuple[str, int], list[GeneratedTokens]] = {}
        self.ends: dict[tuple[str, int], FinishReason] = {}
        self.outputs: dict[str, RequestOutput] = {}

    def take(self, deltas: tuple[RequestDelta, ...], requests: dict[str, Request]) -> None:
        for delta in deltas:
            assert delta.request_id not in self.outputs, "something came after the end"
            for sample in delta.samples:
                key = (delta.request_id, sample.index)
                resumed = {old.index: old.tokens for old in requests[delta.request_id].resumed}
                before = self.tokens.setdefault(key, [resumed[sample.index]] if sample.index in resumed else [])
                assert sample.start == sum(map(len, before)), "a token is missing, or came twice"
                assert key not in self.ends
                assert len(sample.tokens) or sample.finish_reason is not None
                before.append(sample.tokens)
                if sample.finish_reason is not None:
                    self.ends[key] = sample.finish_reason
            if delta.output is not None:
                self.outputs[delta.request_id] = delta.output

    def check_whole(self) -> None:
        for request_id, output in self.outputs.items():
            for sample in output.samples:
                key = (request_id, sample.index)
                assert self.ends[key] is sample.finish_reason
                assert _joined(self.tokens[key]) == sample.tokens


def _joined(parts: list[GeneratedTokens]) -> GeneratedTokens:
    names = ("token_ids", "log_probs", "behaviour_log_probs", "weight_versions")
    return GeneratedTokens(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in names})


@BOTH_WAYS
def test_deltas_of_every_step_add_up_to_the_answer(folder: Path, overlaps: bool) -> None:
    requests = {
        str(number): make_request(str(number), range(1, 5 + number), n=1 + number % 2, max_tokens=20, seed=number)
        for number in range(6)
    }
    expected = run(make_engine(folder), requests.values())
    loop = EngineLoop(make_engine(folder))
    deltas, assembly, num_reads = loop.subscribe_deltas(), Assembly(), 0
    loop.submit(list(requests.values()), deltas)
    while len(assembly.outputs) < len(requests):
        assembly.take(deltas.read(END_S), requests)
        num_reads += 1
    assembly.check_whole()
    assert num_reads > 3, "tokens must come before the answers are whole"
    for request_id, output in expected.items():
        assert [sample.token_ids for sample in assembly.outputs[request_id].samples] == [
            sample.token_ids for sample in output.samples
        ]
    assert loop.stop() == ()


@pytest.mark.parametrize("overlaps", [False, True], indirect=True)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**32))
def test_deltas_add_up_whenever_they_are_read(folder: Path, overlaps: bool, seed: int) -> None:
    """By hand in place of the loop's thread: steps, reads, aborts, new weights and preemptions in any order."""
    rng = random.Random(seed)
    engine = make_engine(folder, num_blocks=24, max_num_sequences=8, max_num_batched_tokens=24)
    deltas = DeltaSubscription(CommandQueue(), set())
    assembly, requests, ended = Assembly(), {}, 0

    def read() -> None:
        deltas._is_waiting = True
        deltas._serve(engine)
        deltas._is_waiting = False
        assembly.take(deltas.read(0.0), requests)

    for number in range(6):
        request = make_request(
            str(number),
            rng.choices(range(90), k=rng.randint(1, 20)),
            n=rng.randint(1, 3),
            max_tokens=rng.randint(1, 25),
        )
        requests[request.id] = request
        assert engine.add(request)
        deltas._follow(request)
        for _ in range(rng.randint(0, 8)):
            outputs = engine.step()
            if rng.random() < 0.05:
                outputs += engine.abort([str(rng.randint(0, number))])
            if rng.random() < 0.1:
                engine.load_weights(engine.weight_version + 1, weights_of("qwen3", 1))
            deltas._end(outputs)
            ended += len(outputs)
            if rng.random() < 0.4:
                read()
    while engine.has_work:
        outputs = engine.step()
        deltas._end(outputs)
        ended += len(outputs)
        if rng.random() < 0.4:
            read()
    read()
    assert len(assembly.outputs) == ended == len(requests)
    assembly.check_whole()


@BOTH_WAYS
def test_a_resumed_request_tells_only_what_is_new(folder: Path, overlaps: bool) -> None:
    request = make_request("r", range(7), n=3, max_tokens=12, num_top_log_probs=2, kept_support=True, top_k=5)
    whole = run(make_engine(folder), [request])["r"]
    first, second, _ = whole.samples
    cut = SampleOutput(
        index=1,
        tokens=GeneratedTokens.of(
            *(column[:5] for column in (second.token_ids, second.log_probs, second.behaviour_log_probs)),
            second.weight_versions[:5],
        ),
        top_log_probs=second.top_log_probs[:5],
        kept_support=second.kept_support[:5],
        finish_reason=FinishReason.ABORT,
    )
    resumed = Request(**(vars(request) | {"resumed": (first, cut)}))
    loop = EngineLoop(make_engine(folder))
    deltas, assembly = loop.subscribe_deltas(), Assembly()
    loop.submit([resumed], deltas)
    top: list[Any] = []
    support: list[bytes] = []
    while not assembly.outputs:
        read = deltas.read(END_S)
        assembly.take(read, {"r": resumed})
        for sample in (sample for delta in read for sample in delta.samples if sample.index == 1):
            top += sample.top_log_probs
            support += sample.kept_support
    loop.stop()
    assembly.check_whole()
    assert tuple(sample.token_ids for sample in assembly.outputs["r"].samples) == tuple(
        sample.token_ids for sample in whole.samples
    )
    assert [sum(map(len, parts)) for _, parts in sorted(assembly.tokens.items())] == [12, 12, 12]
    assert len(assembly.tokens["r", 0]) == 2, "a sample that was complete ends without a token"
    assert [[token for token, _ in entry] for entry in top] == [
        [token for token, _ in entry] for entry in second.top_log_probs[5:]
    ]
    assert tuple(support) == second.kept_support[5:]


def test_the_last_deltas_before_a_stop_come_with_what_was_broken_off(folder: Path) -> None:
    requests = {name: make_request(name, range(9), n=2, max_tokens=200, seed=3) for name in "ab"}
    loop = EngineLoop(_engine_that_pauses(folder, 20))
    deltas, answers, assembly = loop.subscribe_deltas(), loop.subscribe_answers(), Assembly()
    loop.submit([requests["a"]], deltas)
    loop.submit([requests["b"]], answers)
    while not assembly.tokens:
        assembly.take(deltas.read(END_S), requests)
    partials = {output.request_id: output for output in loop.stop()}
    while not deltas.is_closed:
        assembly.take(deltas.read(END_S), requests)
    assert partials.keys() == {"a", "b"}
    assert (answers.read(END_S), answers.is_closed) == ((), True)
    assert (assembly.outputs, assembly.ends) == ({}, {}), "another engine may go on with it"
    for sample in partials["a"].samples:
        assert _joined(assembly.tokens["a", sample.index]) == sample.tokens


def test_an_aborted_request_ends_in_its_subscription(folder: Path) -> None:
    request = make_request("a", range(9), max_tokens=200)
    loop = EngineLoop(_engine_that_pauses(folder, 20))
    deltas, assembly = loop.subscribe_deltas(), Assembly()
    loop.submit([request], deltas)
    while not assembly.tokens:
        assembly.take(deltas.read(END_S), {"a": request})
    loop.abort(["a", "unknown"])
    while not assembly.outputs:
        assembly.take(deltas.read(END_S), {"a": request})
    assembly.check_whole()
    assert assembly.ends == {("a", 0): FinishReason.ABORT}
    assert loop.run(lambda engine: engine.stats().num_used_blocks) == 0
    loop.stop()


def test_a_request_that_is_refused_ends_with_its_error(folder: Path) -> None:
    loop = EngineLoop(make_engine(folder))
    deltas = loop.subscribe_deltas()
    loop.submit([make_request("bad", ()), Request(**(vars(make_request("", (1,))) | {"id": 7}))], deltas)
    first, second = _first(deltas, 2)
    assert (first.request_id, first.samples) == ("bad", ())
    assert first.output is not None
    assert "at least one token id" in str(first.output.error)
    assert (second.request_id, second.samples) == ("7", ())
    loop.stop()


def test_a_paused_engine_keeps_its_readers_waiting_and_goes_on(folder: Path) -> None:
    request = make_request("a", range(9), max_tokens=30)
    loop = EngineLoop(make_engine(folder))
    deltas, assembly = loop.subscribe_deltas(), Assembly()
    loop.run(lambda engine: engine.pause("keep"))
    loop.submit([request], deltas)
    assert deltas.read(0.0) == ()
    steps = loop.run(lambda engine: engine.stats().num_steps)
    assert steps == 0
    loop.run(lambda engine: engine.resume())
    while not assembly.outputs:
        assembly.take(deltas.read(END_S), {"a": request})
    assembly.check_whole()
    loop.stop()


def test_an_update_of_weights_that_failed_in_the_middle_can_be_made_good(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = _engine_that_pauses(folder, 10)
    loop, weights = EngineLoop(engine), weights_of("qwen3", 1)
    answers, deltas = loop.subscribe_answers(), loop.subscribe_deltas()

    def fail_in_the_middle(engine: Engine) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(engine._runner, "put_weights", lambda tensors: (_ for _ in ()).throw(OSError("torn")))
            _go_on(engine)
            engine.load_weights(1, weights)

    loop.submit([make_request("a", range(9), max_tokens=60)], answers)
    loop.submit([make_request("b", range(9), max_tokens=60)], deltas)
    assert deltas.read(END_S)
    with pytest.raises(OSError, match="torn"):
        loop.run(fail_in_the_middle)
    assert answers.read(0.0) == ()
    loop.run(lambda engine: engine.load_weights(1, weights))
    (output,) = answers.read(END_S)
    assert output.finished
    assert set(output.samples[0].weight_versions) == {0, 1}
    loop.stop()


def test_ranks_that_compute_one_model_run_in_the_same_loop(folder: Path) -> None:
    request = make_request("a", range(9), max_tokens=12, temperature=0.0)
    expected = run(make_engine(folder), [request])["a"].samples[0].token_ids
    with engine_over_two_ranks(folder) as engine:
        loop = EngineLoop(engine)
        deltas, assembly = loop.subscribe_deltas(), Assembly()
        loop.submit([request], deltas)
        while not assembly.outputs:
            assembly.take(deltas.read(END_S), {"a": request})
        loop.run(lambda engine: engine.load_weights(1, weights_of("qwen3", 1)))
        loop.stop()
    assembly.check_whole()
    assert assembly.outputs["a"].samples[0].token_ids == expected


def _first(deltas: DeltaSubscription, number: int) -> Iterator[RequestDelta]:
    found: list[RequestDelta] = []
    while len(found) < number:
        found += deltas.read(END_S)
    return iter(found)


def test_a_slow_reader_makes_no_memory_grow(folder: Path) -> None:
    """What is not read is not stored: it stands in the engine until the request ends."""
    loop = EngineLoop(_engine_that_pauses(folder, 120))
    deltas, answers = loop.subscribe_deltas(), loop.subscribe_answers()
    loop.submit([make_request("slow", range(5), max_tokens=200)], deltas)
    loop.submit([make_request("quick", range(5), max_tokens=100)], answers)
    assert answers.read(END_S)
    held = loop.run(lambda engine: (list(deltas._unread), list(deltas._ended)))
    assert held == ([], [])
    (delta,) = deltas.read(END_S)
    assert len(delta.samples[0].tokens) >= 100, "all that was missed comes at once"
    loop.stop()


def test_weight_versions_come_with_the_tokens(folder: Path) -> None:
    loop = EngineLoop(_engine_that_pauses(folder, 20))
    deltas, assembly = loop.subscribe_deltas(), Assembly()
    request = make_request("a", range(5), max_tokens=60)
    loop.submit([request], deltas)
    while not assembly.tokens:
        assembly.take(deltas.read(END_S), {"a": request})
    weights = weights_of("qwen3", 1)

    def update(engine: Engine) -> None:
        engine.load_weights(5, weights)
        _go_on(engine)

    loop.run(update)
    while not assembly.outputs:
        assembly.take(deltas.read(END_S), {"a": request})
    loop.stop()
    versions = _joined(assembly.tokens["a", 0]).weight_versions.tolist()
    assert versions == sorted(versions)
    assert set(versions) == {0, 5}
