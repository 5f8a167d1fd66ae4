"""Several conversations in one request."""

from __future__ import annotations

from typing import Any

import pytest
from serving_fakes import FakePool, calling_context, fake_context
from starlette.testclient import TestClient

from rlserve.serving.config import LimitsConfig, ServeConfig, ServedModelConfig
from rlserve.serving.front.app import create_app

PATH = "/v1/chat/completions/batch"
TALKS = [[{"role": "user", "content": text}] for text in ("first", "second one", "third")]


@pytest.fixture
def pool() -> FakePool:
    return FakePool("hello")


@pytest.fixture
def client(pool: FakePool) -> TestClient:
    return TestClient(create_app(fake_context(pool=pool)))


def test_each_conversation_has_one_choice(client: TestClient, pool: FakePool) -> None:
    answer = client.post(PATH, json={"messages": TALKS, "max_tokens": 5, "return_token_ids": True}).json()
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2]
    assert {choice["message"]["content"] for choice in answer["choices"]} == {"hello"}
    assert {len(choice["token_ids"]) for choice in answer["choices"]} == {5}
    alone = [client.post("/v1/chat/completions", json={"messages": talk, "max_tokens": 5}).json() for talk in TALKS]
    assert answer["usage"]["prompt_tokens"] == sum(one["usage"]["prompt_tokens"] for one in alone)
    assert answer["usage"]["completion_tokens"] == 15
    assert [request.prompt_token_ids for request in pool.requests[:3]] == [
        request.prompt_token_ids for request in pool.requests[3:]
    ]


def test_reasoning_is_split_off_each_answer() -> None:
    context = calling_context(FakePool("<think>so</think>yes"))
    answer = TestClient(create_app(context)).post(PATH, json={"messages": TALKS[:2]}).json()
    assert [choice["message"]["reasoning"] for choice in answer["choices"]] == ["so", "so"]
    assert [choice["message"]["content"] for choice in answer["choices"]] == ["yes", "yes"]


def test_each_answer_stands_behind_its_own_echo(client: TestClient) -> None:
    begun = [[*talk, {"role": "assistant", "content": f"{number}: "}] for number, talk in enumerate(TALKS)]
    body = {"messages": begun, "echo": True, "continue_final_message": True, "add_generation_prompt": False}
    choices = client.post(PATH, json=body).json()["choices"]
    assert [choice["message"]["content"] for choice in choices] == ["0: hello", "1: hello", "2: hello"]


@pytest.mark.parametrize(
    ("wrong", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": [[]]}, "messages"),
        ({"messages": TALKS[0]}, "messages"),
        ({"messages": TALKS * 2}, "messages"),
        ({"stream": True}, "stream"),
        ({"n": 2}, "n"),
        ({"tools": []}, "tools"),
        ({"tool_choice": "auto"}, "tool_choice"),
        ({"prompt_logprobs": 1}, "prompt_logprobs"),
        ({"top_logprobs": 1}, "top_logprobs"),
    ],
)
def test_what_cannot_be_had_is_named(wrong: dict[str, Any], param: str) -> None:
    config = ServeConfig(model=ServedModelConfig(path="fake"), limits=LimitsConfig(max_prompts=5))
    client = TestClient(create_app(fake_context(config=config)))
    refused = client.post(PATH, json={"messages": TALKS, **wrong})
    assert refused.status_code == 400
    assert refused.json()["error"]["param"].startswith(param)


def test_one_that_is_too_long_refuses_all(client: TestClient, pool: FakePool) -> None:
    long = [{"role": "user", "content": "a" * 10_000}]
    refused = client.post(PATH, json={"messages": [*TALKS, long]})
    assert (refused.status_code, pool.requests) == (400, [])
