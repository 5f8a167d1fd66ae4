"""Logs of a server as JSON: each line is bound to its request, and none has a word of a client."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from serving_fakes import KEY, FakePool, fake_context
from starlette.testclient import TestClient

from rlserve.json_log import REQUEST_FIELDS, JsonFormatter, ProcessFields, RequestFields
from rlserve.serving.front.app import create_app
from rlserve.serving.front.gate import Gate

SECRET = "zebra"


@pytest.fixture
def lines() -> Iterator[io.StringIO]:
    """All records of all levels and libraries, as JSON."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonFormatter(ProcessFields(component="front")))
    root = logging.getLogger()
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    yield stream
    root.setLevel(level)
    root.removeHandler(handler)


def read(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def post(path: str, content: Any, pool: FakePool | None = None) -> httpx.Response:
    context = fake_context(pool=pool)
    gate = Gate(create_app(context), context.keys, context.metrics, checks_host=False)
    headers = {"Authorization": f"Bearer {KEY}", "X-Request-Id": "request-7"}
    return TestClient(gate, raise_server_exceptions=False).post(path, json=content, headers=headers)


def test_a_request_is_logged_with_its_id_and_the_weights_that_answered(lines: io.StringIO) -> None:
    answer = post("/v1/completions", {"prompt": "a", "max_tokens": 5})
    assert answer.status_code == 200
    (record,) = (each for each in read(lines) if each["logger"] == "rlserve.serving.front.gate")
    assert record["request_id"] == "request-7"
    assert record["weight_version"] == 3
    assert record["component"] == "front"
    assert record["level"] == "INFO"
    assert "replica" not in record  # the fake pool has none


@pytest.mark.parametrize(
    ("path", "content"),
    [
        ("/v1/completions", {"prompt": SECRET, "max_tokens": 5}),
        ("/v1/completions", {"prompt": SECRET, "max_tokens": 5, "stream": True}),
        ("/v1/completions", {"prompt": SECRET, SECRET: 1}),
        ("/v1/completions", {"prompt": SECRET, "temperature": SECRET}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": SECRET}], "stop": [SECRET], "user": SECRET}),
        ("/v1/chat/completions", {"messages": [{"role": SECRET, "content": SECRET}]}),
        ("/generate", {"inputs": SECRET}),
        ("/tokenize", {"prompt": SECRET}),
        (f"/{SECRET}", {"prompt": SECRET}),
    ],
    ids=lambda value: str(value)[:40],
)
def test_no_text_of_a_client_is_logged(lines: io.StringIO, path: str, content: dict[str, Any]) -> None:
    post(path, content, FakePool(text=f"{SECRET} said"))
    own = [each for each in read(lines) if each["logger"].startswith("rlserve")]
    assert own
    assert SECRET not in json.dumps(own)


def test_not_even_where_the_server_fails_over_it(lines: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise KeyError(SECRET)

    monkeypatch.setattr("rlserve.serving.front.routes.completions.admit", fail)
    context = fake_context()
    gate = Gate(create_app(context), context.keys, context.metrics, checks_host=False)

    async def logged(scope: Any, receive: Any, send: Any) -> None:
        try:
            await gate(scope, receive, send)
        except KeyError:  # as uvicorn does
            logging.getLogger("uvicorn.error").exception("Exception in ASGI application")

    client = TestClient(logged, raise_server_exceptions=False)
    answer = client.post("/v1/completions", json={"prompt": SECRET}, headers={"Authorization": f"Bearer {KEY}"})
    assert answer.status_code == 500
    (record,) = (each for each in read(lines) if each["logger"] == "uvicorn.error")
    assert record["exception"].endswith("KeyError")
    assert "in fail" in record["exception"]
    assert SECRET not in lines.getvalue().replace("KeyError(SECRET)", "")


def test_a_record_may_name_a_replica_and_says_all_of_an_exception_outside_of_requests() -> None:
    token = REQUEST_FIELDS.set(None)
    try:
        raise ValueError("how it failed")
    except ValueError as error:
        record = logging.LogRecord("a", logging.ERROR, "", 1, "replica %s", ("0",), (ValueError, error, None))
    record.replica = "0"
    told = json.loads(JsonFormatter(ProcessFields()).format(record))
    assert told["message"] == "replica 0"
    assert told["replica"] == "0"
    assert "how it failed" in told["exception"]
    REQUEST_FIELDS.set(RequestFields(request_id="r", weight_version=4))
    assert json.loads(JsonFormatter(ProcessFields()).format(record))["weight_version"] == 4
    REQUEST_FIELDS.reset(token)
