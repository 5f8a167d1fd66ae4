"""Deltas of a reader that wants few pieces a second."""

from __future__ import annotations

from pathlib import Path

import pytest
from delta_assembly import Assembly
from engine_builders import BOTH_WAYS, END_S, make_engine, make_request, run, save_model

from rlserve.engine import Engine, EngineLoop, RequestOutput
from rlserve.engine.loop import DeltaSubscription
from rlserve.engine.loop.commands import CommandQueue
from rlserve.engine.loop.piece_pace import PiecePace


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("pieces") / "model", "qwen3")


def _engine_that_pauses(folder: Path) -> Engine:
    """By itself, after 20 steps."""
    engine = make_engine(folder)
    step = engine.step

    def step_and_pause() -> list[RequestOutput]:
        outputs = step()
        if engine.stats().num_steps == 20:
            engine.pause("keep")
        return outputs

    engine.step = step_and_pause  # type: ignore[method-assign]
    return engine


@BOTH_WAYS
def test_with_few_pieces_a_second_each_has_many_tokens_and_first_ones_do_not_wait(folder: Path, overlaps: bool) -> None:
    requests = {name: make_request(name, range(7), n=2, max_tokens=40) for name in "abcd"}
    engine = make_engine(folder)
    expected = run(make_engine(folder), requests.values())
    deltas = DeltaSubscription(CommandQueue(), set(), PiecePace(1.0, clock=lambda: 1e-3 * engine.stats().num_steps))
    for request in requests.values():
        assert engine.add(request)
        deltas._follow(request)
    assembly, num_pieces = Assembly(), 0
    while engine.has_work:
        deltas._end(engine.step())
        deltas._is_waiting = True
        deltas._serve(engine)
        deltas._is_waiting = False
        read = deltas.read(0.0)
        num_pieces += sum(len(delta.samples) for delta in read)
        assembly.take(read, requests)
    assembly.check_whole()
    assert assembly.outputs == expected
    assert {len(parts[0]) for parts in assembly.tokens.values()} == {1}, "a first token waited for others"
    assert num_pieces == 16, "first tokens, and what is told with the end"


def test_what_was_not_told_is_told_when_the_engine_pauses(folder: Path) -> None:
    request = make_request("a", range(9), n=2, max_tokens=200, seed=3)
    loop = EngineLoop(_engine_that_pauses(folder))
    deltas, assembly = loop.subscribe_deltas(1e-9), Assembly()
    loop.submit([request], deltas)
    while sum(map(len, assembly.tokens.get(("a", 1), ()))) < 15:
        assembly.take(deltas.read(END_S), {"a": request})
    loop.stop()
