"""Each draw of the engine against the definition, written out in float64 over the logits of transformers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from engine_builders import BOTH_WAYS, VOCAB_SIZE, make_engine, make_request, run, save_model
from numpy.typing import NDArray
from transformers import AutoModelForCausalLM

from rlserve.engine import Engine, FinishReason, Request, SampleOutput, SamplingParams
from rlserve.engine.sampling.support import unpack_support
from rlserve.engine.sequences.random_streams import stream_key, uniforms

pytestmark = BOTH_WAYS

PROMPT = (5, 9, 9, 30, 61)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("model"), "qwen3", initializer_range=0.1)


@pytest.fixture(params=["cpu", "torch"])
def engine(folder: Path, request: pytest.FixtureRequest) -> Engine:
    return make_engine(folder, attention_backend=request.param)


def _definition(logits_V: NDArray[np.float64], before: list[int], sampling: SamplingParams) -> NDArray[np.float64]:
    """[V] the distribution that the token after ``before`` is drawn from."""
    logits_V = logits_V.copy()
    if sampling.allowed_token_ids:
        logits_V[np.setdiff1d(np.arange(VOCAB_SIZE), sampling.allowed_token_ids)] = -np.inf
    logits_V[list(sampling.bad_token_ids)] = -np.inf
    if len(before) < sampling.min_tokens:
        logits_V[list(sampling.stop_token_ids)] = -np.inf
    for token_id, bias in sampling.logit_bias.items():
        logits_V[token_id] += bias
    for token_id in {*PROMPT, *before}:
        factor = sampling.repetition_penalty
        logits_V[token_id] = logits_V[token_id] / factor if logits_V[token_id] > 0 else logits_V[token_id] * factor
    for token_id in set(before):
        logits_V[token_id] -= sampling.frequency_penalty * before.count(token_id) + sampling.presence_penalty
    if sampling.temperature == 0:
        return (np.arange(VOCAB_SIZE) == logits_V.argmax()).astype(np.float64)
    weights_V = np.exp((logits_V - logits_V.max()) / sampling.temperature)
    weights_V[weights_V < sampling.min_p] = 0
    if sampling.top_k:
        weights_V[weights_V < np.sort(weights_V)[-sampling.top_k]] = 0
    probabilities_V = weights_V / weights_V.sum()
    if sampling.top_p < 1:
        ordered = np.sort(probabilities_V)[::-1]
        last = ordered[np.searchsorted(ordered.cumsum(), sampling.top_p)]
        probabilities_V[probabilities_V < last] = 0
    return probabilities_V / probabilities_V.sum()


def _assert_drawn_by_definition(model: Any, sample: SampleOutput, sampling: SamplingParams) -> None:
    with torch.no_grad():
        logits_TV = model(torch.tensor([[*PROMPT, *sample.token_ids]])).logits[0, len(PROMPT) - 1 :].double()
    raw_TV = logits_TV.log_softmax(dim=-1).numpy()
    for position, token_id in enumerate(sample.token_ids):
        top = dict(sample.top_log_probs[position])
        assert list(top.values()) == sorted(top.values(), reverse=True)
        assert [top[other] for other in range(VOCAB_SIZE)] == pytest.approx(raw_TV[position], abs=1e-4)
        assert sample.log_probs[position] == pytest.approx(raw_TV[position, token_id], abs=1e-4)
        probabilities_V = _definition(logits_TV[position].numpy(), list(sample.token_ids[:position]), sampling)
        assert sample.behaviour_log_probs[position] == pytest.approx(np.log(probabilities_V[token_id]), abs=1e-4)
        uniform = uniforms(np.array([stream_key(sampling.seed, sample.index)]), np.array([position], np.int32))[0]
        edges = np.concatenate([[0.0], probabilities_V.cumsum()])
        assert sampling.temperature == 0 or edges[token_id] - 1e-5 <= uniform <= edges[token_id + 1] + 1e-5
        kept_V = unpack_support(sample.kept_support[position], VOCAB_SIZE)
        assert kept_V.tolist() == (probabilities_V > 0).tolist()


RULES: list[dict[str, Any]] = [
    {},
    {"min_p": 0.3},
    {"min_p": 0.05, "top_k": 20, "top_p": 0.8, "temperature": 0.7},
    {"repetition_penalty": 1.8},
    {"repetition_penalty": 0.5, "temperature": 0.5},
    {"presence_penalty": 1.5},
    {"frequency_penalty": 2.0, "temperature": 0.3},
    {"frequency_penalty": -2.0, "presence_penalty": -1.0},
    {"logit_bias": {3: 4.0, 50: 100.0, 9: -100.0}},
    {"allowed_token_ids": (1, 2, 3, 40)},
    {"bad_token_ids": tuple(range(0, 90, 2))},
    {"min_tokens": 6, "stop_token_ids": tuple(range(48))},
    {
        "temperature": 0.8,
        "min_p": 0.01,
        "top_k": 30,
        "repetition_penalty": 1.2,
        "presence_penalty": 0.3,
        "frequency_penalty": 0.4,
        "logit_bias": {7: 2.0},
        "allowed_token_ids": tuple(range(60)),
        "bad_token_ids": (11,),
        "min_tokens": 4,
        "stop_token_ids": (7, 8),
    },
    {"temperature": 0.0, "repetition_penalty": 1.3, "bad_token_ids": (1, 2, 3)},
]


def test_every_draw_is_by_definition_with_all_rules_in_one_batch_and_preemption(engine: Engine, folder: Path) -> None:
    requests = [
        make_request(
            str(index),
            PROMPT,
            **(
                {"n": 2, "max_tokens": 14, "seed": index, "num_top_log_probs": VOCAB_SIZE, "kept_support": True} | rules
            ),
        )
        for index, rules in enumerate(RULES)
    ]
    model = AutoModelForCausalLM.from_pretrained(folder)
    outputs = run(engine, requests)
    for request in requests:
        for sample in outputs[request.id].samples:
            assert outputs[request.id].error is None
            _assert_drawn_by_definition(model, sample, request.sampling)
            assert len(sample.top_log_probs) == len(sample.kept_support) == len(sample.token_ids)
            assert len(sample.token_ids) > request.sampling.min_tokens or not request.sampling.min_tokens

    small = make_engine(folder, num_blocks=14)
    preempted = run(small, requests)
    assert small.stats().num_preemptions > 0
    for request in requests:
        for sample, other in zip(preempted[request.id].samples, outputs[request.id].samples, strict=True):
            assert sample.token_ids == other.token_ids
            assert sample.kept_support == other.kept_support
            assert sample.behaviour_log_probs == pytest.approx(other.behaviour_log_probs, abs=1e-4)


def test_asking_for_details_changes_neither_tokens_nor_log_probabilities(engine: Engine) -> None:
    plain = [
        make_request(str(index), PROMPT, n=3, top_p=0.9, min_p=0.01, max_tokens=12, seed=index) for index in range(4)
    ]
    expected = run(engine, plain)
    asking = [
        replace(request, sampling=replace(request.sampling, num_top_log_probs=3, kept_support=True, prompt_log_probs=2))
        if index % 2
        else request
        for index, request in enumerate(plain)
    ]
    outputs = run(engine, asking)
    for request in plain:
        for sample, other in zip(outputs[request.id].samples, expected[request.id].samples, strict=True):
            assert sample.token_ids == other.token_ids
            assert sample.log_probs == pytest.approx(other.log_probs, abs=1e-5)
            assert sample.behaviour_log_probs == pytest.approx(other.behaviour_log_probs, abs=1e-5)
            assert bool(sample.top_log_probs) == bool(sample.kept_support) == (int(request.id) % 2 == 1)


def test_rules_of_one_request_leave_the_others_in_the_batch_alone(engine: Engine) -> None:
    plain = make_request("plain", PROMPT, n=2, max_tokens=10, seed=3)
    alone = run(engine, [plain])["plain"]
    together = run(engine, [make_request("bad", PROMPT, max_tokens=10, bad_token_ids=tuple(range(50))), plain])
    assert [sample.token_ids for sample in together["plain"].samples] == [sample.token_ids for sample in alone.samples]
    assert min(together["bad"].samples[0].token_ids) >= 50


def test_min_tokens_holds_back_the_end_of_sequence_token_and_only_as_long_as_asked(tmp_path: Path) -> None:
    engine = make_engine(save_model(tmp_path, "qwen3", eos_token_id=17))
    wants_to_end = {"logit_bias": {17: 100.0}, "max_tokens": 12}
    outputs = run(
        engine,
        [
            make_request("at once", PROMPT, **wants_to_end),
            make_request("later", PROMPT, min_tokens=5, **wants_to_end),
            make_request("ignored", PROMPT, min_tokens=5, ignore_eos=True, **wants_to_end),
        ],
    )
    assert outputs["at once"].samples[0].token_ids == (17,)
    later = outputs["later"].samples[0]
    assert later.token_ids.index(17) == len(later.token_ids) - 1 == 5
    assert (later.finish_reason, later.stop_reason) == (FinishReason.STOP, 17)
    assert outputs["ignored"].samples[0].token_ids == (17,) * 12


def test_a_resumed_sample_is_penalised_for_the_tokens_it_brings(engine: Engine) -> None:
    request = make_request(
        "0", PROMPT, max_tokens=20, seed=4, frequency_penalty=2.0, num_top_log_probs=2, kept_support=True, top_k=9
    )
    expected = run(engine, [request])["0"].samples[0]
    engine.add(request)
    for _ in range(8):
        engine.step()
    (partial,) = engine.abort(["0"])
    resumed = run(engine, [replace(request, resumed=partial.samples)])["0"].samples[0]
    assert (resumed.token_ids, resumed.kept_support) == (expected.token_ids, expected.kept_support)
    assert [[token for token, _ in top] for top in resumed.top_log_probs] == [
        [token for token, _ in top] for top in expected.top_log_probs
    ]
    without = tuple(replace(sample, top_log_probs=()) for sample in partial.samples)
    refused = run(engine, [replace(request, resumed=without)])["0"]
    assert "must have top_log_probs for each token" in (refused.error or "")


def _bad(message: str, **sampling: Any) -> Any:
    return pytest.param(sampling, message, id=message)


@pytest.mark.parametrize(
    ("sampling", "message"),
    [
        _bad("min_p must be", min_p=1.5),
        _bad("min_p must be from 0 to 1, got nan", min_p=float("nan")),
        _bad("repetition_penalty must be", repetition_penalty=0.0),
        _bad("repetition_penalty must be from 0.001 to 1000, got nan", repetition_penalty=float("nan")),
        _bad("presence_penalty must be", presence_penalty=3),
        _bad("frequency_penalty must be", frequency_penalty="much"),
        _bad("logit_bias has 96", logit_bias={VOCAB_SIZE: 1.0}),
        _bad("logit_bias must be from -100 to 100, got inf for 3", logit_bias={3: float("inf")}),
        _bad("malformed request", logit_bias=5),
        _bad("allowed_token_ids has -1", allowed_token_ids=(-1,)),
        _bad("bad_token_ids has 'a'", bad_token_ids=("a",)),
        _bad("min_tokens must be", min_tokens=-1),
        _bad("from 0 to max_tokens, got 17", min_tokens=17),
        _bad("no token can be drawn", allowed_token_ids=(1, 2), bad_token_ids=(2, 1, 3)),
        _bad("no token can be drawn: allowed", bad_token_ids=tuple(range(VOCAB_SIZE))),
        _bad("no token can be drawn: allowed_token_ids", allowed_token_ids=(4,), stop_token_ids=(4,), min_tokens=1),
        _bad("num_top_log_probs must be", num_top_log_probs=VOCAB_SIZE + 1),
        _bad("prompt_log_probs must be", prompt_log_probs=-1),
        _bad("kept_support must be", kept_support=1),
    ],
)
def test_bad_rules_are_refused(folder: Path, sampling: dict[str, Any], message: str) -> None:
    engine = make_engine(folder)
    good = make_request("good", PROMPT, max_tokens=2)
    bad = Request(id="bad", prompt_token_ids=PROMPT, sampling=SamplingParams(**sampling))
    outputs = run(engine, [good, bad])
    assert message in (outputs["bad"].error or "")
    assert outputs["good"].finished
