"""Deltas of a real engine in a thread of its own: they add up to the answers, whatever happens on the way."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from delta_assembly import Assembly, joined
from engine_builders import (
    BOTH_WAYS,
    END_S,
    engine_over_two_ranks,
    make_engine,
    make_request,
    run,
    save_model,
    weights_of,
)
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
from rlserve.engine.loop import DeltaSubscription
from rlserve.engine.loop.commands import CommandQueue
from rlserve.engine.loop.piece_pace import PiecePace


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
    """By hand in place of the loop's thread: steps, reads, aborts, new weights and preemptions in any order, with few
    pieces a step or all."""
    rng = random.Random(seed)
    engine = make_engine(folder, num_blocks=24, max_num_sequences=8, max_num_batched_tokens=24)
    pace = PiecePace(rng.choice((math.inf, 300.0)), clock=lambda: 0.01 * engine.stats().num_steps)
    deltas = DeltaSubscription(CommandQueue(), set(), pace)
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


def test_progress_is_told_when_it_is_due_and_the_end_is_the_whole_answer(folder: Path) -> None:
    requests = [make_request(name, range(7), n=2, max_tokens=40) for name in "ab"]
    expected = run(make_engine(folder), requests)
    engine = _engine_that_pauses(folder, 20)
    loop = EngineLoop(engine)
    always, never = loop.subscribe_progress(0.0), loop.subscribe_progress(1e9)
    loop.submit([requests[0]], always)
    loop.submit([requests[1]], never)
    told: list[RequestDelta] = []
    while sum(len(sample.tokens) for delta in told for sample in delta.samples) < 10:
        told += always.read(END_S)
    loop.run(lambda engine: (_go_on(engine), engine.resume()))
    while told[-1].output is None:
        told += always.read(END_S)
    for index, sample in enumerate(told[-1].output.samples):
        parts = [part for delta in told for part in delta.samples if part.index == index]
        tokens = [token_id for part in parts for token_id in part.tokens.token_ids.tolist()]
        assert tuple(tokens) == sample.token_ids[: len(tokens)]
        assert sample.token_ids == expected["a"].samples[index].token_ids
    assert told[-1].samples == ()
    (end,) = _first(never, 1)
    assert (end.samples, end.output) == ((), expected["b"])
    loop.stop()


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
        assert joined(assembly.tokens["a", sample.index]) == sample.tokens


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
    versions = joined(assembly.tokens["a", 0]).weight_versions.tolist()
    assert versions == sorted(versions)
    assert set(versions) == {0, 5}
