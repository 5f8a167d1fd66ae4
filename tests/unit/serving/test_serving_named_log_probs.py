"""``logprob_token_ids``, and -1 as a number of log-probabilities."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from serving_fakes import TOKENIZER, FakePool, fake_context
from starlette.testclient import TestClient

from rlserve.serving.config import LimitsConfig
from rlserve.serving.front.app import create_app
from rlserve.serving.protocol.sampling import count_logprobs

CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "hi"}], "logprobs": True, "max_tokens": 5}
COMPLETION: dict[str, Any] = {"prompt": "ab", "logprobs": 1, "max_tokens": 5}
ROUTES = [("/v1/chat/completions", CHAT), ("/v1/completions", COMPLETION)]
VOCAB_SIZE = len(TOKENIZER)


@pytest.fixture
def pool() -> FakePool:
    return FakePool("hello")


def _client(pool: FakePool, max_logprobs: int = 20) -> TestClient:
    context = fake_context(pool=pool)
    config = replace(context.config, limits=LimitsConfig(max_logprobs=max_logprobs))
    return TestClient(create_app(replace(context, config=config)))


@pytest.mark.parametrize(("path", "body"), ROUTES)
def test_named_tokens_are_asked_of_the_engine_in_place_of_the_likeliest(
    pool: FakePool, path: str, body: dict[str, Any]
) -> None:
    answer = _client(pool).post(path, json={**body, "logprob_token_ids": [7, 5]})
    assert answer.status_code == 200
    (request,) = pool.requests
    assert (request.sampling.log_prob_token_ids, request.sampling.num_top_log_probs) == ((7, 5), 0)


@pytest.mark.parametrize(("path", "body"), ROUTES)
@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"logprobs": None}, "needs logprobs"),
        ({"logprob_token_ids": []}, "logprob_token_ids"),
        ({"logprob_token_ids": [5, 5]}, "twice"),
        ({"logprob_token_ids": list(range(21))}, "at most 20"),
        ({"logprob_token_ids": [VOCAB_SIZE]}, "out of vocabulary"),
        ({"logprob_token_ids": ["5"]}, "logprob_token_ids"),
    ],
)
def test_tokens_that_cannot_be_told_are_refused(
    pool: FakePool, path: str, body: dict[str, Any], change: dict[str, Any], words: str
) -> None:
    answer = _client(pool).post(path, json={**body, "logprob_token_ids": [5], **change})
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (400, "logprob_token_ids")
    assert words in error["message"]


def test_named_tokens_are_not_for_an_echo_alone(pool: FakePool) -> None:
    body = {**COMPLETION, "echo": True, "max_tokens": 0, "logprob_token_ids": [5]}
    assert _client(pool).post("/v1/completions", json=body).json()["error"]["param"] == "logprob_token_ids"


@pytest.mark.parametrize(
    ("path", "body", "name"),
    [
        ("/v1/chat/completions", CHAT, "top_logprobs"),
        ("/v1/chat/completions", CHAT, "prompt_logprobs"),
        ("/v1/completions", COMPLETION, "logprobs"),
        ("/v1/completions", COMPLETION, "prompt_logprobs"),
    ],
)
def test_minus_one_is_the_whole_vocabulary_where_there_is_room_for_it(
    pool: FakePool, path: str, body: dict[str, Any], name: str
) -> None:
    asked = {**body, name: -1}
    refused = _client(pool, VOCAB_SIZE - 1).post(path, json=asked)
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, name)
    assert f"{VOCAB_SIZE} tokens" in refused.json()["error"]["message"]
    assert _client(pool, VOCAB_SIZE).post(path, json={**asked, name: -2}).status_code == 400
    assert pool.requests == []
    assert count_logprobs(name, -1, LimitsConfig(max_logprobs=VOCAB_SIZE), VOCAB_SIZE) == VOCAB_SIZE
    if name != "prompt_logprobs":  # the engine of these tests knows no prompts
        assert _client(pool, VOCAB_SIZE).post(path, json=asked).status_code == 200
        assert pool.requests[0].sampling.num_top_log_probs == VOCAB_SIZE


@pytest.mark.parametrize(("max_logprobs", "least"), [(20, 0), (VOCAB_SIZE, -1)])
def test_the_description_says_what_can_be_asked_for(pool: FakePool, max_logprobs: int, least: int) -> None:
    schemas = _client(pool, max_logprobs).get("/openapi.json").json()["components"]["schemas"]
    chat, responses = schemas["ChatRequest"]["properties"], schemas["ResponsesRequest"]["properties"]
    assert chat["top_logprobs"]["anyOf"][0]["minimum"] == chat["prompt_logprobs"]["anyOf"][0]["minimum"] == least
    assert responses["top_logprobs"]["anyOf"][0]["minimum"] == 0
    named = chat["logprob_token_ids"]["anyOf"][0]
    assert (named["maxItems"], named["items"]["maximum"]) == (max_logprobs, VOCAB_SIZE - 1)
