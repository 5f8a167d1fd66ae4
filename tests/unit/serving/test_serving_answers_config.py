"""What answers tell because the server is configured so."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from serving_fakes import FakePool, fake_context, generated
from starlette.testclient import TestClient

from rlserve.engine.requests.request import RequestOutput, SampleOutput
from rlserve.serving.answers.config import AnswersConfig
from rlserve.serving.answers.timings import timings
from rlserve.serving.config import ServeConfig, ServedModelConfig
from rlserve.serving.front.app import create_app
from rlserve.serving.protocol import answer_schemas

COMPLETION: dict[str, Any] = {"prompt": "ab", "max_tokens": 5}
CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 5}
BOTH = pytest.mark.parametrize(("path", "body"), [("/v1/completions", COMPLETION), ("/v1/chat/completions", CHAT)])


def client_of(**answers: bool) -> TestClient:
    pool = FakePool("hello")
    pool.queue_time_s, pool.time_to_first_token_s, pool.time_to_last_token_s = 0.5, 1.5, 3.5
    config = ServeConfig(model=ServedModelConfig(path="fake"), answers=AnswersConfig(**answers))
    return TestClient(create_app(fake_context(pool=pool, config=config)))


def chunks(client: TestClient, path: str, body: dict[str, Any]) -> list[dict[str, Any]]:
    lines = client.post(path, json={**body, "stream": True}).text.split("\n\n")
    return [json.loads(line.removeprefix("data: ")) for line in lines if line and "[DONE]" not in line]


def output(*lengths: int, queue_s: float | None, first_s: float | None, last_s: float | None) -> RequestOutput:
    return RequestOutput(
        request_id="r",
        samples=tuple(SampleOutput(index=index, tokens=generated([5] * n)) for index, n in enumerate(lengths)),
        queue_time_s=queue_s,
        time_to_first_token_s=first_s,
        time_to_last_token_s=last_s,
    )


def test_times_of_one_answer() -> None:
    assert timings([output(5, queue_s=0.5, first_s=1.5, last_s=3.5)]) == {
        "queue_time_ms": 500,
        "time_to_first_token_ms": 1000,
        "generation_time_ms": 2000,
        "mean_itl_ms": 500,
        "tokens_per_second": pytest.approx(5 / 3),
    }


def test_one_token_has_no_time_to_the_next() -> None:
    assert "mean_itl_ms" not in timings([output(1, queue_s=0.0, first_s=1.0, last_s=1.0)])


def test_times_of_several_are_those_of_all_together() -> None:
    outputs = [output(2, 3, queue_s=1.0, first_s=2.0, last_s=4.0), output(4, queue_s=0.5, first_s=3.0, last_s=5.0)]
    assert timings(outputs) == {
        "queue_time_ms": 500,
        "time_to_first_token_ms": 1500,
        "generation_time_ms": 3000,
        "tokens_per_second": pytest.approx(9 / 4.5),
    }


@pytest.mark.parametrize("missing", ["queue_time_s", "time_to_first_token_s", "time_to_last_token_s"])
def test_what_is_not_known_is_not_told(missing: str) -> None:
    known = output(5, queue_s=0.5, first_s=1.5, last_s=3.5)
    assert timings([known, replace(known, **{missing: None})]) == timings([]) == {}


@BOTH
def test_answers_tell_their_times(path: str, body: dict[str, Any]) -> None:
    answer = client_of(timings=True).post(path, json=body)
    assert answer.json()["metrics"]["mean_itl_ms"] == 500
    model = answer_schemas.ChatAnswer if "chat" in path else answer_schemas.CompletionAnswer
    model.model_validate_json(answer.content, strict=True)
    assert "metrics" not in client_of().post(path, json=body).json()


@BOTH
def test_streams_tell_their_times_beside_their_usage(path: str, body: dict[str, Any]) -> None:
    client = client_of(timings=True)
    *others, last = chunks(client, path, {**body, "stream_options": {"include_usage": True}})
    assert last["metrics"]["generation_time_ms"] == 2000
    assert last["usage"]["completion_tokens"] == 5
    assert not any("metrics" in chunk for chunk in [*others, *chunks(client, path, body)])


@BOTH
@pytest.mark.parametrize("options", [{}, {"stream_options": {}}, {"stream_options": {"include_usage": False}}])
def test_streams_tell_their_usage_without_being_asked(path: str, body: dict[str, Any], options: dict[str, Any]) -> None:
    *others, last = chunks(client_of(stream_usage=True), path, {**body, **options})
    assert (last["choices"], last["usage"]["completion_tokens"]) == ([], 5)
    numbers = [chunk["usage"]["completion_tokens"] for chunk in others]
    assert numbers == sorted(numbers)
    assert numbers[-1] == 5
    assert not any("usage" in chunk for chunk in chunks(client_of(), path, {**body, **options}))


@pytest.mark.parametrize(("asked", "by_number"), [({}, True), ({"return_tokens_as_token_ids": False}, False)])
def test_tokens_are_named_by_number_unless_a_request_says_otherwise(asked: dict[str, Any], by_number: bool) -> None:
    client = client_of(tokens_as_token_ids=True)
    answer = client.post("/v1/completions", json={**COMPLETION, "logprobs": 1, **asked}).json()
    names = answer["choices"][0]["logprobs"]["tokens"]
    assert [name.startswith("token_id:") for name in names] == [by_number] * 5
