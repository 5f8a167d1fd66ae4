"""Pausing in three ways, and freeing weights and KV cache apart."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from engine_builders import BOTH_WAYS, VOCAB_SIZE, make_engine, make_request, run, save_model, weight_bytes, weights_of

from rlserve.engine import Engine, FinishReason, Request
from rlserve.errors import IllegalTransitionError, UserError, WeightsRefusedError

pytestmark = BOTH_WAYS

PROMPT = tuple(random.Random(6).choices(range(VOCAB_SIZE), k=12))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_model(tmp_path, "llama")


def _requests() -> list[Request]:
    return [make_request(str(index), PROMPT, n=2, max_tokens=12, seed=index) for index in range(4)]


def _tokens(outputs: dict[str, Any]) -> dict[str, list[tuple[int, ...]]]:
    return {name: [sample.token_ids for sample in output.samples] for name, output in outputs.items()}


def test_wait_lets_the_started_requests_finish_and_starts_no_other(folder: Path) -> None:
    expected = _tokens(run(make_engine(folder), _requests()))
    engine = make_engine(folder, max_num_sequences=2)
    for request in _requests()[:3]:
        engine.add(request)
    for _ in range(3):
        engine.step()
    assert engine.stats().num_waiting == 4, "one sample of each of the first two requests, and all of the third"

    assert engine.pause("wait") == []

    assert not engine.is_drained
    engine.add(replace(_requests()[3], priority=-5))
    finished = {}
    while not engine.is_drained:
        finished |= {output.request_id: output for output in engine.step()}
        engine.check_integrity()
    assert _tokens(finished) == {name: expected[name] for name in ("0", "1")}
    assert engine.step() == []
    stats = engine.stats()
    assert (stats.num_running, stats.num_waiting, stats.num_used_blocks) == (0, 4, 0)
    assert engine.has_work
    engine.resume()
    assert not engine.is_drained
    assert _tokens(run(engine)) == {name: expected[name] for name in ("2", "3")}


def test_wait_brings_preempted_samples_to_their_end(folder: Path) -> None:
    engine = make_engine(folder, num_blocks=12)
    requests = [make_request(str(index), PROMPT, max_tokens=30, seed=index) for index in range(6)]
    for request in requests:
        engine.add(request)
    while engine.stats().num_preemptions == 0:
        engine.step()
    engine.pause("wait")
    finished = set()
    while not engine.is_drained:
        finished |= {output.request_id for output in engine.step()}
    waiting = engine.stats().num_waiting
    assert len(finished) + waiting == 6
    assert waiting > 0
    engine.resume()
    assert finished | run(engine).keys() == {request.id for request in requests}


def test_abort_returns_what_there_is_and_keeps_later_requests_for_the_resume(folder: Path, overlaps: bool) -> None:
    expected = _tokens(run(make_engine(folder), _requests()))
    engine = make_engine(folder, max_num_sequences=2)
    for request in _requests()[:3]:
        engine.add(request)
    for _ in range(5):
        engine.step()

    partials = {output.request_id: output for output in engine.pause("abort")}

    engine.check_integrity()
    assert partials.keys() == {"0", "1", "2"}
    assert engine.is_drained
    assert not engine.has_work
    assert engine.stats().num_used_blocks == 0
    assert [len(sample.token_ids) for sample in partials["0"].samples] == [4 if overlaps else 5, 0]
    assert partials["2"].samples[0].finish_reason is FinishReason.ABORT
    engine.add(_requests()[3])
    for _ in range(3):
        assert engine.step() == []
    engine.resume()
    for request in _requests()[:3]:
        engine.add(replace(request, resumed=partials[request.id].samples))
    assert _tokens(run(engine)) == expected


def test_from_one_mode_to_the_other(folder: Path) -> None:
    expected = _tokens(run(make_engine(folder), _requests()))
    engine = make_engine(folder, max_num_sequences=2)
    for request in _requests():
        engine.add(request)
    engine.step()
    engine.pause("wait")
    engine.step()
    engine.pause()
    before = engine.stats()
    assert engine.step() == []
    assert engine.stats() == before
    assert not engine.is_drained
    engine.pause("wait")
    aborted = engine.abort(["3"])
    assert aborted[0].samples[0].token_ids == ()
    engine.resume()
    assert _tokens(run(engine)) == {name: tokens for name, tokens in expected.items() if name != "3"}


def test_another_mode_is_refused(folder: Path) -> None:
    mode: Any = "stop"
    with pytest.raises(UserError, match="must be one of keep, abort, wait, got 'stop'"):
        make_engine(folder).pause(mode)


def _refusal(engine: Engine) -> str:
    return run(engine, [make_request("0", PROMPT)])["0"].error or ""


def test_weights_and_kv_cache_are_released_and_restored_apart(folder: Path) -> None:
    engine = make_engine(folder)
    request = make_request("0", PROMPT)
    before = run(engine, [request])["0"]

    engine.release_memory(weights=True, kv_cache=False)
    assert weight_bytes(engine) == 0
    with pytest.raises(WeightsRefusedError, match="memory is released"):
        engine.named_weights()
    assert "memory is released" in _refusal(engine)
    with pytest.raises(IllegalTransitionError, match="released already"):
        engine.release_memory(weights=True)
    engine.release_memory()
    engine.restore_memory(kv_cache=False)
    engine.load_weights(1, weights_of("llama", 0))
    assert "memory is released" in _refusal(engine)
    with pytest.raises(IllegalTransitionError, match="nothing is released"):
        engine.restore_memory(kv_cache=False)

    engine.restore_memory(weights=False)

    assert [sample.token_ids for sample in run(engine, [request])["0"].samples] == [
        sample.token_ids for sample in before.samples
    ]


def test_the_kv_cache_may_come_back_before_the_weights(folder: Path) -> None:
    engine = make_engine(folder)
    engine.release_memory(weights=True)
    engine.restore_memory(weights=False)
    with pytest.raises(WeightsRefusedError, match="restore it first"):
        engine.begin_weight_update(1)
    assert "memory is released" in _refusal(engine)
    engine.restore_memory()
    assert "no weights" in _refusal(engine)
    engine.load_weights(0, weights_of("llama", 0))
    assert _refusal(engine) == ""
