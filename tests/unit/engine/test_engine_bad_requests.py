"""A bad request costs its own error output and nothing else."""

from __future__ import annotations

import random
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from engine_builders import BOTH_WAYS, VOCAB_SIZE, make_engine, make_request, run, save_model
from transformers import AutoTokenizer

from rlserve.engine import Engine, FinishReason, GeneratedTokens, Request, SampleOutput, SamplingParams
from rlserve.engine.requests.validation import shown

pytestmark = BOTH_WAYS

PROMPT = (1, 2, 3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("model"), "llama")


@pytest.fixture
def engine(folder: Path) -> Engine:
    return make_engine(folder)


def _partial(**changes: Any) -> SampleOutput:
    """A sample of one token; changes are fields of the sample or columns of its tokens."""
    columns = {field.name for field in fields(GeneratedTokens)} & changes.keys()
    tokens = replace(GeneratedTokens.of([1], [-1.0], [-1.0], [0]), **{name: changes[name] for name in columns})
    others = {name: value for name, value in changes.items() if name not in columns}
    return SampleOutput(**({"index": 0, "tokens": tokens} | others))


BAD_SAMPLING: list[tuple[dict[str, Any], str]] = [
    ({"n": 0}, "n must be"),
    ({"n": 10**9}, "n must be"),
    ({"n": 1.5}, "n must be"),
    ({"max_tokens": 0}, "max_tokens must be"),
    ({"max_tokens": -4}, "max_tokens must be"),
    ({"n": 2, "num_greedy": 3}, "num_greedy must be a whole number from 0 to n"),
    ({"n": 2, "sample_max_tokens": (3,)}, "sample_max_tokens must be empty"),
    ({"n": 2, "sample_max_tokens": (3, 0)}, "sample_max_tokens must be whole"),
    ({"n": 1, "max_tokens": 4, "sample_max_tokens": (5,)}, "sample_max_tokens must be whole"),
    ({"temperature": float("nan")}, "temperature must be"),
    ({"temperature": float("inf")}, "temperature must be"),
    ({"temperature": -0.1}, "temperature must be"),
    ({"temperature": 10**400}, "temperature must be"),
    ({"temperature": "hot"}, "temperature must be"),
    ({"top_k": -2}, "top_k must be"),
    ({"top_p": 0.0}, "top_p must be"),
    ({"top_p": 1.01}, "top_p must be"),
    ({"top_p": float("nan")}, "top_p must be"),
    ({"seed": 2**70}, "seed must be"),
    ({"seed": "3"}, "seed must be"),
    ({"stop": ("",)}, "stop must be"),
    ({"stop": "end"}, "stop must be"),
    ({"stop": ("end",)}, "stop strings, bad words and structured outputs need a tokenizer"),
    ({"stop_token_ids": (VOCAB_SIZE,)}, "stop_token_ids has 96"),
    ({"stop_token_ids": tuple(range(VOCAB_SIZE)) * 3}, "stop_token_ids can be at most 256"),
    ({"stop_token_ids": 7}, "malformed request"),
    ({"stop_token_ids": {7}}, "stop_token_ids must be a tuple or a list, got set"),
    ({"allowed_token_ids": torch.tensor([1, 2])}, "allowed_token_ids must be a tuple or a list, got Tensor"),
    ({"ignore_eos": "no"}, "ignore_eos must be True or False"),
    ({"repetition_penalty": 1e-300}, "repetition_penalty must be from 0.001 to 1000"),
]


@pytest.mark.parametrize(("sampling", "message"), BAD_SAMPLING, ids=lambda value: str(value)[:40])
def test_bad_sampling_parameters(engine: Engine, sampling: dict[str, Any], message: str) -> None:
    (output,) = _serve_beside_a_good_one(
        engine, Request(id="bad", prompt_token_ids=PROMPT, sampling=SamplingParams(**sampling))
    )
    assert message in output


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompt_token_ids": ()}, "at least one token id"),
        ({"prompt_token_ids": None}, "at least one token id"),
        ({"prompt_token_ids": (1, VOCAB_SIZE)}, "has 96, token ids are whole numbers from 0 to 95"),
        ({"prompt_token_ids": (1, -1)}, "has -1"),
        ({"prompt_token_ids": (1, 2.0)}, "has 2.0"),
        ({"prompt_token_ids": (1, "a")}, "has 'a'"),
        ({"prompt_token_ids": (1,) * 256}, "256 tokens, and prompt plus answer may have 256"),
        ({"sampling": None}, "sampling must be SamplingParams"),
        ({"priority": "high"}, "priority must be"),
        ({"id": 3}, "id must be a string"),
        ({"id": ["a"]}, "id must be a string"),
        ({"resumed": (_partial(index=1),)}, "index from 0 to 0"),
        ({"resumed": (_partial(), _partial())}, "sample 0 twice"),
        ({"resumed": (_partial(log_probs=np.float32([])),)}, "a log-probability and a version for each token"),
        ({"resumed": (_partial(token_ids=np.int32([VOCAB_SIZE])),)}, "resumed sample 0 has 96, token ids are"),
        ({"resumed": (_partial(token_ids=np.int32([-1])),)}, "resumed sample 0 has -1, token ids are"),
        ({"resumed": (_partial(log_probs=np.float32([np.nan])),)}, "has nan in log_probs, must be a finite number"),
        ({"resumed": (_partial(behaviour_log_probs=np.float32([-np.inf])),)}, "has -inf in behaviour_log_probs"),
        ({"resumed": (_partial(weight_versions=np.int64([-2])),)}, "has the weight version -2"),
        ({"resumed": (_partial(weight_versions=np.array([0.5])),)}, "must be a one-dimensional array of int64"),
        ({"resumed": (_partial(token_ids=(1,)),)}, "must be a one-dimensional array of int32"),
        ({"resumed": (_partial(tokens=(1,)),)}, "tokens of resumed sample 0 must be GeneratedTokens, got tuple"),
        ({"resumed": (_partial(finish_reason="done"),)}, "has the finish_reason 'done', which is none"),
        pytest.param(
            {"resumed": (sample for sample in ())}, "resumed must be a tuple or a list, got generator", id="generator"
        ),
        ({"resumed": 5}, "malformed request"),
        ({"id": 10**5000}, "id must be a string, got a huge int"),
    ],
    ids=lambda value: shown(value)[:40],
)
def test_bad_requests(engine: Engine, changes: dict[str, Any], message: str) -> None:
    fields: dict[str, Any] = {"id": "bad", "prompt_token_ids": PROMPT, "sampling": SamplingParams()}
    (output,) = _serve_beside_a_good_one(engine, Request(**(fields | changes)))
    assert message in output


def test_a_prompt_that_the_whole_cache_cannot_hold_is_refused_and_the_longest_that_fits_is_served(folder: Path) -> None:
    engine = make_engine(folder, num_blocks=10, block_size=4)
    assert engine.max_model_len == 40
    outputs = run(engine, [make_request("39", [1] * 39, max_tokens=9), make_request("40", [1] * 40)])
    assert "40 tokens" in (outputs["40"].error or "")
    assert len(outputs["39"].samples[0].token_ids) == 1
    assert outputs["39"].samples[0].finish_reason is FinishReason.LENGTH


def test_a_second_request_with_the_same_id_is_refused_and_the_first_served(engine: Engine) -> None:
    engine.add(make_request("same", PROMPT, max_tokens=4))
    engine.add(make_request("same", PROMPT, max_tokens=4))
    (refused,) = engine.step()
    assert "already" in (refused.error or "")
    assert refused.samples == ()
    assert run(engine)["same"].error is None


ODD_VALUES: list[Any] = [
    *(None, True, -1, 2**31, 2**63, 10**400, 10**5000, 1.5, 1e-320, float("nan"), float("inf"), -float("inf"), 1j),
    *("", "x", "x" * 100_000, b"x", [], [1], {1}, frozenset({3}), {}, {1: 2}, {1: float("nan")}, {True: 1.0}, range(3)),
    *([None], ["a"], [""], [1.0], [True], [[1]], [10**5000], object(), len, ("\ud800",)),
    *(np.int64(3), np.float32(0.5), np.array(1), np.array([1, 2]), np.array([]), [np.int64(1)]),
    *(torch.tensor(1), torch.tensor([1, 2]), torch.tensor([])),
]
PLACES = [
    (kind, place.name) for kind in (Request, SamplingParams, SampleOutput, GeneratedTokens) for place in fields(kind)
]


def _with_value_at(kind: type, name: str, value: Any, request_id: str) -> Request:
    changes = {name: value}
    sampling = {"max_tokens": 2} | (changes if kind is SamplingParams else {})
    request = {"id": request_id, "prompt_token_ids": PROMPT, "sampling": SamplingParams(**sampling)}
    if kind in (SampleOutput, GeneratedTokens):
        request["resumed"] = (_partial(**changes),)
    return Request(**(request | (changes if kind is Request else {})))


@pytest.mark.parametrize(("kind", "name"), PLACES, ids=lambda value: getattr(value, "__name__", value))
def test_no_value_of_any_type_does_harm(engine: Engine, kind: type, name: str) -> None:
    for index, value in enumerate(ODD_VALUES):
        engine.add(_with_value_at(kind, name, value, str(index)))
    engine.add(make_request("good", PROMPT, max_tokens=3))
    outputs = []
    while engine.has_work:
        outputs += engine.step()
    engine.check_integrity()
    assert len(outputs) == len(ODD_VALUES) + 1
    assert [output.finished for output in outputs if output.request_id == "good"] == [True]
    assert all(output.finished or 0 < len(output.error or "") < 500 for output in outputs)


@pytest.mark.parametrize("backend", ["cpu", "torch"])
@pytest.mark.parametrize("top_p", [1e-320, 1e-45, 1e-38])
def test_a_top_p_too_small_for_the_kernels_keeps_the_likeliest_token(folder: Path, top_p: float, backend: str) -> None:
    engine = make_engine(folder, attention_backend=backend)
    requests = [make_request("tiny", PROMPT, top_p=top_p), make_request("greedy", PROMPT, temperature=0.0)]
    outputs = run(engine, requests)
    assert outputs["tiny"].samples[0].token_ids == outputs["greedy"].samples[0].token_ids
    assert set(outputs["tiny"].samples[0].behaviour_log_probs) == {0.0}


def test_lists_do_as_well_as_tuples(engine: Engine) -> None:
    ids: Any = [5, 6]
    for name in ("stop_token_ids", "allowed_token_ids", "bad_token_ids"):
        listed, tupled = (make_request(kind.__name__, PROMPT, seed=0, **{name: kind(ids)}) for kind in (list, tuple))
        outputs = run(engine, [listed, tupled])
        assert outputs["list"].samples == outputs["tuple"].samples


def test_ten_thousand_random_bad_requests_leave_the_engine_as_it_was(
    engine: Engine, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    num_searches = 0

    def search(*_: Any, **__: Any) -> None:
        nonlocal num_searches
        num_searches += 1
        raise OSError("no tokenizer")

    monkeypatch.setattr(AutoTokenizer, "from_pretrained", search)
    rng = random.Random(0)
    expected = run(make_engine(folder), [make_request("good", PROMPT, max_tokens=8)])["good"]
    for index in range(10_000):
        sampling, _ = rng.choice(BAD_SAMPLING)
        engine.add(Request(id=str(index), prompt_token_ids=PROMPT, sampling=SamplingParams(**sampling)))
    refused = engine.step()
    assert len(refused) == 10_000
    assert all(output.error for output in refused)
    assert num_searches == 1, "each would read files"
    assert engine.stats().num_waiting == engine.stats().num_used_blocks == 0
    assert run(engine, [make_request("good", PROMPT, max_tokens=8)])["good"] == expected


def _serve_beside_a_good_one(engine: Engine, bad: Request) -> list[str]:
    """Errors of the bad request; the good one, added before and after it, must end well."""
    engine.add(make_request("before", PROMPT, max_tokens=3))
    engine.add(bad)
    engine.add(make_request("after", PROMPT, max_tokens=3))
    outputs = run(engine)
    assert outputs["before"].finished
    assert outputs["after"].finished
    assert len(outputs) == 3
    return [output.error for name, output in outputs.items() if name not in ("before", "after") and output.error]
