"""What a container of SageMaker is asked: whether it is there, and the same as its other routes by one name."""

from __future__ import annotations

from typing import Any

import pytest
from serving_fakes import FakePool, fake_context
from starlette.testclient import TestClient

from rlserve.serving.front.app import create_app

CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 5}
COMPLETION: dict[str, Any] = {"prompt": ["ab", "c"], "logprobs": 1}


@pytest.fixture
def pool() -> FakePool:
    return FakePool("hello")


@pytest.fixture
def client(pool: FakePool) -> TestClient:
    return TestClient(create_app(fake_context(pool=pool)))


def test_a_ping_is_answered_while_a_replica_is_ready(client: TestClient, pool: FakePool) -> None:
    assert client.get("/ping").status_code == 200
    pool.num_ready = 0
    assert client.get("/ping").status_code == 503


@pytest.mark.parametrize(("path", "body"), [("/v1/chat/completions", CHAT), ("/v1/completions", COMPLETION)])
def test_the_body_says_what_is_asked(client: TestClient, path: str, body: dict[str, Any]) -> None:
    expected, answer = client.post(path, json=body).json(), client.post("/invocations", json=body).json()
    assert answer["choices"] == expected["choices"]
    assert answer.keys() == expected.keys()
    assert answer["usage"] == expected["usage"]


@pytest.mark.parametrize("body", [CHAT, {"prompt": "ab"}])
def test_it_is_streamed_too(client: TestClient, body: dict[str, Any]) -> None:
    answer = client.post("/invocations", json={**body, "stream": True})
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.text.endswith("data: [DONE]\n\n")


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "messages"),
        ({"input": "ab"}, "messages"),
        ({**CHAT, "prompt": "ab"}, "prompt"),
        ({"messages": 3}, "messages"),
        ({"prompt": "ab", "temperature": "much"}, "temperature"),
        ({"prompt": "ab", "model": "another"}, "model"),
    ],
)
def test_what_is_neither_is_refused(client: TestClient, pool: FakePool, body: dict[str, Any], param: str) -> None:
    refused = client.post("/invocations", json=body)
    assert refused.status_code in (400, 404)
    assert refused.json()["error"]["param"] == param
    assert pool.requests == []


@pytest.mark.parametrize("content", [b"", b"[]", b'"messages"', b"{", b"3"])
def test_a_body_that_is_no_object_is_refused(client: TestClient, content: bytes) -> None:
    refused = client.post("/invocations", content=content, headers={"Content-Type": "application/json"})
    assert refused.status_code == 400
