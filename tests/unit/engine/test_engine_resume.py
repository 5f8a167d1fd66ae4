"""Aborted samples are resumed on another engine and end as if nothing had happened."""

from __future__ import annotations

import random
from dataclasses import fields, replace
from pathlib import Path

import pytest
from engine_builders import BOTH_WAYS, VOCAB_SIZE, make_engine, make_request, run, save_model, weights_of

from rlserve.engine import FinishReason, Request, RequestOutput, SampleOutput
from rlserve.errors import UserError

pytestmark = BOTH_WAYS

PROMPT = tuple(random.Random(4).choices(range(VOCAB_SIZE), k=21))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_model(tmp_path, "qwen3")


def _assert_same(output: RequestOutput, expected: RequestOutput) -> None:
    assert output.error is None
    for sample, other in zip(output.samples, expected.samples, strict=True):
        assert (sample.index, sample.token_ids) == (other.index, other.token_ids)
        assert (sample.finish_reason, sample.stop_reason) == (other.finish_reason, other.stop_reason)
        assert sample.log_probs == pytest.approx(other.log_probs, abs=1e-4)
        assert sample.behaviour_log_probs == pytest.approx(other.behaviour_log_probs, abs=1e-4)
        assert sample.weight_versions == other.weight_versions


def _request() -> Request:
    return make_request("0", PROMPT, n=4, temperature=0.9, top_k=30, max_tokens=40, seed=11, stop_token_ids=(5, 6))


def test_resumed_on_another_engine_equals_the_uninterrupted_run(folder: Path) -> None:
    request = _request()
    expected = run(make_engine(folder), [request])["0"]
    lengths = [len(sample.token_ids) for sample in expected.samples]
    assert len(set(lengths)) > 1, "the samples were to end at different times"
    engine = make_engine(folder)
    engine.add(request)
    for _ in range(min(lengths) + 2):
        assert engine.step() == []

    (partial,) = engine.abort(["0", "unknown"])

    engine.check_integrity()
    assert engine.stats().num_used_blocks == 0
    assert not engine.has_work
    reasons = [sample.finish_reason for sample in partial.samples]
    assert FinishReason.STOP in reasons
    assert FinishReason.ABORT in reasons
    assert not partial.finished
    resumed = run(make_engine(folder, block_size=8), [replace(request, resumed=partial.samples)])["0"]
    _assert_same(resumed, expected)


def test_kept_tokens_keep_their_log_probabilities_and_versions(folder: Path, overlaps: bool) -> None:
    engine = make_engine(folder)
    request = replace(_request(), sampling=replace(_request().sampling, stop_token_ids=()))
    engine.add(request)
    for _ in range(10):
        engine.step()
    (partial,) = engine.abort(["0"])
    other = make_engine(folder)
    other.load_weights(2, weights_of("qwen3", 1))

    output = run(other, [replace(request, resumed=partial.samples)])["0"]

    num_kept = 9 if overlaps else 10
    for sample, kept in zip(output.samples, partial.samples, strict=True):
        assert sample.token_ids[:num_kept] == kept.token_ids
        assert sample.log_probs[:num_kept] == kept.log_probs
        assert sample.behaviour_log_probs[:num_kept] == kept.behaviour_log_probs
        assert sample.weight_versions == (0,) * num_kept + (2,) * (40 - num_kept)


def test_some_samples_resumed_some_complete_and_some_new(folder: Path) -> None:
    request = _request()
    expected = run(make_engine(folder), [request])["0"]
    resumed = (
        replace(_cut(expected.samples[2], 3), finish_reason=FinishReason.ABORT),
        expected.samples[1],
    )
    engine = make_engine(folder)

    output = run(engine, [replace(request, resumed=resumed)])["0"]

    _assert_same(output, expected)
    assert engine.stats().num_forks == 1, "samples 0 and 3 share one prefill"
    assert engine.stats().prefix_hits >= 20, "sample 2 finds the prompt in the cache"


def test_a_request_whose_samples_are_all_complete_is_handed_back(folder: Path) -> None:
    request = _request()
    expected = run(make_engine(folder), [request])["0"]
    engine = make_engine(folder)
    engine.add(replace(request, resumed=expected.samples))
    assert engine.step() == [replace(expected, num_cached_tokens=0)]
    assert engine.stats().num_computed_tokens == 0


def test_a_partial_sample_that_already_has_max_tokens_ends_by_length(folder: Path) -> None:
    request = make_request("0", PROMPT, max_tokens=6)
    full = run(make_engine(folder), [request])["0"].samples[0]
    output = run(make_engine(folder), [replace(request, resumed=(replace(full, finish_reason=None),))])["0"]
    assert output.samples == (full,)


def test_abort_of_waiting_requests_returns_them_without_tokens(folder: Path) -> None:
    engine = make_engine(folder)
    engine.add(_request())
    (output,) = engine.abort(["0"])
    assert [sample.token_ids for sample in output.samples] == [()] * 4
    assert {sample.finish_reason for sample in output.samples} == {FinishReason.ABORT}
    assert engine.step() == []
    engine.check_integrity()


def test_paused_means_nothing_is_computed_and_nothing_lost(folder: Path) -> None:
    expected = run(make_engine(folder), [_request()])["0"]
    engine = make_engine(folder)
    engine.add(_request())
    for _ in range(5):
        engine.step()
    engine.pause()
    before = engine.stats()
    assert engine.step() == []
    assert engine.stats() == before
    assert engine.has_work
    engine.resume()
    _assert_same(run(engine)["0"], expected)


def _cut(sample: SampleOutput, num_tokens: int) -> SampleOutput:
    columns = {field.name: getattr(sample.tokens, field.name)[:num_tokens] for field in fields(sample.tokens)}
    return replace(sample, tokens=replace(sample.tokens, **columns), stop_reason=None)


def test_abort_takes_ids_and_not_the_letters_of_one(folder: Path) -> None:
    engine = make_engine(folder)
    engine.add(make_request("1", [1, 2, 3]))
    with pytest.raises(UserError, match="put it into a list"):
        engine.abort("12")
    assert len(engine.abort(["1", "2"])) == 1


def test_what_others_have_computed_is_told_as_computed_again(folder: Path) -> None:
    request = make_request("0", PROMPT, max_tokens=20, ignore_eos=True)
    first, second = make_engine(folder), make_engine(folder)
    first.add(request)
    for _ in range(6):
        first.step()
        assert first.last_work.num_recomputed_tokens == 0
    (partial,) = first.abort(["0"])
    second.add(replace(request, resumed=partial.samples))
    second.step()
    assert second.last_work.num_recomputed_tokens == len(PROMPT) + len(partial.samples[0].tokens)
    assert second.last_work.recomputed_share == 1.0
    second.step()
    assert second.last_work.recomputed_share == 0.0
