"""Answers have the form that was asked for, whatever happens on the way; mistakes cost their own request."""

from __future__ import annotations

import json
import math
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
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
from json_model import EOS, SECOND_EOS, VOCAB_SIZE, json_tokenizer, save_json_model
from structured_setting import PROMPT, structured

from rlserve.engine import Engine, EngineLoop, FinishReason, RequestOutput, SampleOutput, StructuredOutput
from rlserve.engine.grammars.compiler import MAX_GRAMMARS, GrammarCompiler
from rlserve.engine.requests.folder_tokenizer import FolderTokenizer
from rlserve.engine.sampling.support import unpack_support

pytestmark = BOTH_WAYS

PHONE = "[0-9]{3}-[0-9]{4}( ext [0-9]{1,3})?"
PERSON = json.dumps(
    {
        "type": "object",
        "properties": {"name": {"type": "string", "maxLength": 6}, "age": {"type": "integer", "minimum": 0}},
        "required": ["name", "age"],
        "additionalProperties": False,
    }
)
TOKENIZER = json_tokenizer()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_json_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(params=["cpu", "torch"])
def engine(folder: Path, request: pytest.FixtureRequest) -> Engine:
    return make_engine(folder, attention_backend=request.param)


def _text(sample: SampleOutput) -> str:
    ends = sample.stop_reason in (EOS, SECOND_EOS)
    return str(TOKENIZER.decode(sample.token_ids[:-1] if ends else sample.token_ids))


def _is_right(sample: SampleOutput, pattern: str) -> bool:
    """Whether the sample has ended by itself and matches."""
    return sample.finish_reason is FinishReason.STOP and re.fullmatch(pattern, _text(sample)) is not None


@pytest.mark.parametrize(
    ("kind", "text", "pattern"),
    [
        ("regex", PHONE, PHONE),
        ("choice", '["yes", "no", "per\\"haps", "da\\u00df"]', 'yes|no|per"haps|daß'),
        ("grammar", 'start: sum\nsum: N ("+" N)~2\nN: /[0-9]{1,2}/', r"\d{1,2}\+\d{1,2}\+\d{1,2}"),
        ("grammar", 'root ::= "a" [0-9] ("b" | "c")', "a[0-9][bc]"),
        ("json_schema", PERSON, r'\{\s*"name"\s*:\s*".*"\s*,\s*"age"\s*:\s*\d+\s*\}'),
    ],
)
def test_answers_have_the_form_that_was_asked_for(engine: Engine, kind: Any, text: str, pattern: str) -> None:
    request = structured("0", kind, text, n=6, max_tokens=400)
    samples = run(engine, [request])["0"].samples
    assert all(_is_right(sample, f"(?s){pattern}") for sample in samples), [_text(sample) for sample in samples]
    assert len({sample.token_ids for sample in samples}) > 1


def test_a_json_object_is_one(engine: Engine) -> None:
    sample = run(engine, [structured("0", "json_object", max_tokens=400, logit_bias={_id('"'): 6.0, _id("}"): 9.0})])
    assert isinstance(json.loads(_text(sample["0"].samples[0])), dict)


def _id(token: str) -> int:
    return int(TOKENIZER.convert_tokens_to_ids(token))


def test_the_end_is_allowed_exactly_where_the_answer_is_whole(engine: Engine) -> None:
    output = run(engine, [structured("0", "regex", PHONE, n=6, kept_support=True)])["0"]
    num_whole = 0
    for sample in output.samples:
        for place, packed in enumerate(sample.kept_support):
            kept_V = unpack_support(packed, VOCAB_SIZE)
            is_whole = re.fullmatch(PHONE, str(TOKENIZER.decode(sample.token_ids[:place]))) is not None
            assert kept_V[[EOS, SECOND_EOS]].tolist() == [is_whole, is_whole]
            assert kept_V.any()
            assert not kept_V[len(TOKENIZER) :].any()
            num_whole += is_whole
    assert num_whole >= len(output.samples)


def test_behaviour_log_probabilities_are_those_of_what_was_allowed_and_raw_ones_those_of_the_model(
    engine: Engine,
) -> None:
    plain = make_request("plain", PROMPT, max_tokens=1, num_top_log_probs=VOCAB_SIZE)
    raw = dict(run(engine, [plain])["plain"].samples[0].top_log_probs[0])
    request = structured("0", "regex", "[0-9]x", n=8, num_top_log_probs=VOCAB_SIZE, kept_support=True)
    for sample in run(engine, [request])["0"].samples:
        token_id = sample.token_ids[0]
        allowed = np.flatnonzero(unpack_support(sample.kept_support[0], VOCAB_SIZE)).tolist()
        assert {TOKENIZER.decode([each]) for each in allowed} == set("0123456789")
        assert dict(sample.top_log_probs[0]) == pytest.approx(raw, abs=1e-5)
        assert sample.log_probs[0] == pytest.approx(raw[token_id], abs=1e-5)
        total = math.log(sum(math.exp(raw[each]) for each in allowed))
        assert sample.behaviour_log_probs[0] == pytest.approx(raw[token_id] - total, abs=1e-4)
        assert sample.behaviour_log_probs[1] == pytest.approx(0.0, abs=1e-6)


def test_other_requests_of_the_batch_are_drawn_as_if_alone(engine: Engine) -> None:
    plain = make_request("plain", PROMPT, n=3, max_tokens=12, seed=3)
    alone = run(engine, [plain])["plain"]
    outputs = run(engine, [structured("0", "regex", PHONE, n=4), plain, structured("1", "json_schema", PERSON)])
    for sample, other in zip(outputs["plain"].samples, alone.samples, strict=True):
        assert sample.token_ids == other.token_ids
        assert sample.log_probs == pytest.approx(other.log_probs, abs=1e-5)


def _expected(engine: Engine) -> tuple[list[Any], dict[str, RequestOutput]]:
    requests = [
        structured("0", "regex", "([a-z]{3} ){4,20}", n=3, seed=1),
        structured("1", "json_schema", PERSON, n=2, seed=2, max_tokens=80),
        make_request("2", PROMPT, n=2, max_tokens=30, seed=3),
    ]
    return requests, run(engine, requests)


def test_preempted_samples_go_on_in_their_grammar(engine: Engine, folder: Path) -> None:
    requests, expected = _expected(engine)
    small = make_engine(folder, num_blocks=24)
    outputs = run(small, requests)
    assert small.stats().num_preemptions > 0
    for request_id, output in outputs.items():
        for sample, other in zip(output.samples, expected[request_id].samples, strict=True):
            assert sample.token_ids == other.token_ids


def test_partial_samples_go_on_in_another_engine(engine: Engine, folder: Path) -> None:
    requests, expected = _expected(engine)
    for request in requests[:2]:
        engine.add(request)
    while not all(engine.new_tokens(request.id, {0: 5}) for request in requests[:2]):
        engine.step()
    partials = {partial.request_id: partial for partial in engine.abort([request.id for request in requests])}
    resumed = [replace(request, resumed=partials[request.id].samples) for request in requests[:2]]
    for request_id, output in run(make_engine(folder), resumed).items():
        for sample, other in zip(output.samples, expected[request_id].samples, strict=True):
            assert sample.token_ids == other.token_ids


@pytest.mark.parametrize("on_new_weights", ["keep", "recompute"])
def test_answers_keep_their_form_when_new_weights_come(folder: Path, on_new_weights: str) -> None:
    engine = make_engine(folder, on_new_weights=on_new_weights)
    shape = {"vocab_size": VOCAB_SIZE, "max_position_embeddings": 1024, "initializer_range": 0.1}
    engine.add(structured("0", "regex", "([a-z]{3} ){6,8}", n=4, max_tokens=80))
    outputs = []
    while engine.has_work:
        if engine.stats().num_generated_tokens >= 10 and engine.weight_version == 0:
            engine.load_weights(1, weights_of("qwen3", seed=7, **shape))
        outputs += engine.step()
    (output,) = outputs
    assert all(_is_right(sample, "([a-z]{3} ){6,8}") for sample in output.samples)
    assert all(set(sample.weight_versions) == {0, 1} for sample in output.samples)


def test_several_ranks_give_what_one_gives(engine: Engine, folder: Path) -> None:
    requests, expected = _expected(engine)
    with engine_over_two_ranks(folder, overlap_scheduling=False) as split:
        outputs = run(split, requests)
    for request_id, output in outputs.items():
        for sample, other in zip(output.samples, expected[request_id].samples, strict=True):
            assert sample.token_ids == other.token_ids


def test_stop_strings_and_lengths_end_an_answer_before_it_is_whole(engine: Engine) -> None:
    stopped = structured("stopped", "regex", "a{5}bc{9}", stop=("bc",))
    cut = structured("cut", "regex", "a{5}bc{9}", max_tokens=4)
    outputs = run(engine, [stopped, cut])
    sample = outputs["stopped"].samples[0]
    assert (_text(sample), sample.finish_reason, sample.stop_reason) == ("aaaaabc", FinishReason.STOP, "bc")
    assert outputs["cut"].samples[0].finish_reason is FinishReason.LENGTH


def test_min_tokens_holds_back_the_end_only_where_something_else_may_follow(engine: Engine) -> None:
    longer = structured("longer", "regex", "a*", min_tokens=9, logit_bias={EOS: 100.0})
    over = structured("over", "choice", '["ab"]', min_tokens=9)
    outputs = run(engine, [longer, over])
    assert len(outputs["longer"].samples[0].token_ids) == 10
    assert _text(outputs["over"].samples[0]) == "ab"


def test_temperature_0_takes_the_likeliest_that_is_allowed(engine: Engine) -> None:
    raw = run(engine, [make_request("raw", PROMPT, max_tokens=1, num_top_log_probs=VOCAB_SIZE)])["raw"]
    digits = [token_id for token_id, _ in raw.samples[0].top_log_probs[0] if TOKENIZER.decode([token_id]).isdecimal()]
    sample = run(engine, [structured("0", "regex", "[0-9]+x", temperature=0.0, max_tokens=3)])["0"].samples[0]
    assert sample.token_ids[0] == digits[0]
    assert sample.behaviour_log_probs[0] == 0.0


MISTAKES: list[tuple[Any, str, str]] = [
    ("json_schema", "{", "the JSON schema is no JSON"),
    ("json_schema", "[1]", "the JSON schema must be an object"),
    ("json_schema", '{"type": "bogus"}', "Invalid type: bogus"),
    ("json_schema", '{"type": "array", "uniqueItems": true}', "uniqueItems"),
    ("json_schema", '{"type": "integer", "minimum": 3, "maximum": 2}', "Unsatisfiable"),
    ("json_schema", '{"$ref": "http://example.com/schema"}', "not present"),
    ("json_schema", '{"a":' * 5000 + "1" + "}" * 5000, "recursion"),
    (
        "json_schema",
        '{"type": "string", "pattern": "(a{1000}){1000}"}',
        "repetitions inside each other come to 1000000",
    ),
    ("json_schema", '{"patternProperties": {"(a{1000}){1000}": {}}}', "repetitions inside each other"),
    ("regex", "(a", "regex parse error"),
    ("regex", "(?=a)b", "regex parse error"),
    ("regex", "((x{300}|y)z){300}", "repetitions inside each other come to 90000"),
    ("choice", "yes", "must be a JSON list"),
    ("choice", "[]", "must be a JSON list of strings"),
    ("choice", "[1]", "must be a JSON list of strings"),
    ("grammar", "start: nobody", "unknown name"),
    ("grammar", 'root ::= "', "grammar"),
    ("grammar", "start: A\n" * 2001, "the grammar has 2002 lines"),
]


@pytest.mark.parametrize(("kind", "text", "problem"), MISTAKES)
def test_a_mistake_is_told_to_its_request_alone(engine: Engine, kind: Any, text: str, problem: str) -> None:
    good = structured("good", "regex", PHONE)
    outputs = run(engine, [structured("bad", kind, text), good])
    error = outputs["bad"].error
    assert error is not None
    assert error.startswith("structured_output: ")
    assert problem in error
    assert outputs["bad"].samples == ()
    assert _is_right(outputs["good"].samples[0], PHONE)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"structured_output": "regex"}, "must be a StructuredOutput"),
        ({"structured_output": StructuredOutput(kind="xml", text="")}, "must be one of json_schema"),  # type: ignore[arg-type]
        ({"structured_output": StructuredOutput(kind="regex", text=b"a")}, "must be a string"),  # type: ignore[arg-type]
        ({"structured_output": StructuredOutput(kind="regex", text="a" * 2**18 + "b")}, "at most 262144 bytes"),
        ({"structured_output": StructuredOutput(kind="regex", text="\ud800")}, "malformed request"),
        ({"ignore_eos": True}, "ignore_eos=False"),
    ],
)
def test_what_is_no_structured_output_is_refused_at_once(folder: Path, changes: Any, problem: str) -> None:
    engine = make_engine(folder)
    assert not engine.add(structured("0", "regex", "a", **changes))
    assert problem in str(engine.step()[0].error)


def test_rules_that_leave_no_token_end_the_request_and_say_so(engine: Engine) -> None:
    good = structured("good", "regex", PHONE, n=2)
    outputs = run(engine, [structured("bad", "regex", "ab", bad_token_ids=(_id("b"), _id("ab"))), good])
    assert outputs["bad"].error == "no token is left to draw: the structured output and the other rules forbid all"
    assert all(_is_right(sample, PHONE) for sample in outputs["good"].samples)


def test_a_resumed_sample_that_does_not_follow_the_grammar_ends_its_request(engine: Engine) -> None:
    plain = run(engine, [make_request("plain", PROMPT, max_tokens=5, bad_token_ids=(EOS, SECOND_EOS))])["plain"]
    partial = replace(plain.samples[0], finish_reason=FinishReason.ABORT)
    output = run(engine, [replace(structured("0", "regex", PHONE), resumed=(partial,))])["0"]
    assert output.error == "the tokens so far do not follow the structured output"


def test_without_llguidance_the_remedy_is_told(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)
    error = run(make_engine(folder), [structured("0", "regex", PHONE)])["0"].error
    assert error == "structured_output: it needs llguidance: pip install 'rlserve[structured]'"


def test_without_a_tokenizer_or_an_end_it_is_refused(tmp_path: Path) -> None:
    without = make_engine(save_model(tmp_path / "without", "qwen3", eos_token_id=EOS))
    assert "need a tokenizer" in str(run(without, [structured("0", "regex", PHONE)])["0"].error)
    endless = make_engine(save_json_model(tmp_path / "endless", eos_token_id=None))
    assert "needs an end-of-sequence token" in str(run(endless, [structured("0", "regex", PHONE)])["0"].error)


def test_requests_whose_grammar_is_being_compiled_are_counted_aborted_and_not_taken_twice(folder: Path) -> None:
    engine = make_engine(folder)
    request = structured("0", "regex", PHONE, n=3)
    assert engine.add(request)
    assert not engine.add(request)
    assert engine.has_work
    assert engine.stats().num_waiting == 3
    (output,) = engine.abort(["0"])
    assert [sample.finish_reason for sample in output.samples] == [FinishReason.ABORT] * 3
    assert "in the engine already" in str(engine.step()[0].error)
    assert not engine.has_work
    assert all(_is_right(sample, PHONE) for sample in run(engine, [request])["0"].samples)


def test_thousands_of_definitions_one_in_the_other_and_of_texts_to_choose_from_harm_nothing(folder: Path) -> None:
    inner = ",".join(f'"d{i}":{{"items":{{"$ref":"#/$defs/d{i + 1}"}},"type":"array"}}' for i in range(3500))
    nested = f'{{"$defs":{{{inner},"d3500":{{"type":"integer"}}}},"$ref":"#/$defs/d0"}}'
    texts = [f"text {index}" for index in range(9000)]
    requests = [
        structured("nested", "json_schema", nested, max_tokens=5),
        structured("choice", "choice", json.dumps(texts)),
    ]
    outputs = run(make_engine(folder), requests)
    assert outputs["nested"].finished
    assert _text(outputs["choice"].samples[0]) in texts


def test_a_loop_serves_them_in_both_kinds_of_subscription(folder: Path) -> None:
    loop = EngineLoop(make_engine(folder))
    stream, answers = loop.subscribe_deltas(), loop.subscribe_answers()
    loop.submit([structured("streamed", "regex", PHONE), structured("bad", "regex", "(")], stream)
    loop.submit([structured("whole", "json_schema", PERSON, max_tokens=200)], answers)
    outputs: dict[str, RequestOutput] = {}
    token_ids: list[int] = []
    while len(outputs) < 2:
        for delta in stream.read(END_S):
            token_ids += [token for sample in delta.samples for token in sample.tokens.token_ids.tolist()]
            if delta.output is not None:
                outputs[delta.request_id] = delta.output
    assert "regex parse error" in str(outputs["bad"].error)
    assert _is_right(outputs["streamed"].samples[0], PHONE)
    assert tuple(token_ids) == outputs["streamed"].samples[0].token_ids
    (whole,) = answers.read(END_S)
    assert whole.finished
    loop.stop()


def test_grammars_are_compiled_once_and_only_the_last_ones_are_kept(folder: Path) -> None:
    compiler = GrammarCompiler(FolderTokenizer(folder), VOCAB_SIZE, (EOS,))
    first = StructuredOutput(kind="regex", text=PHONE)
    future = compiler.compile(first)
    assert compiler.compile(StructuredOutput(kind="regex", text=PHONE)) is future
    for index in range(MAX_GRAMMARS - 1):
        compiler.compile(StructuredOutput(kind="regex", text=f"a{index}")).result(END_S)
    assert compiler.compile(first) is future
    compiler.compile(StructuredOutput(kind="regex", text="b"))
    assert compiler.compile(first) is future
    for index in range(MAX_GRAMMARS):
        compiler.compile(StructuredOutput(kind="regex", text=f"c{index}")).result(END_S)
    assert compiler.compile(first) is not future
