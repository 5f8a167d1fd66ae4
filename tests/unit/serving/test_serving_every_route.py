"""What holds on every route that takes a body: limits and roles of keys, and that nobody reads a client's text."""

from __future__ import annotations

import logging
from typing import Any

import httpx
import pytest
from serving_fakes import KEY, FakePool, fake_context, fake_talker
from starlette.testclient import TestClient

from rlserve.serving.config import AccessConfig
from rlserve.serving.front.app import create_app
from rlserve.serving.front.error_shapes import MESSAGES_PATHS
from rlserve.serving.front.gate import Gate
from rlserve.serving.keys import read_keys

SECRET = "zebra"
TALK = [{"role": "user", "content": SECRET}]
BODIES: dict[str, dict[str, Any]] = {
    "/v1/completions": {"prompt": SECRET},
    "/v1/chat/completions": {"messages": TALK},
    "/v1/chat/completions/batch": {"messages": [TALK, TALK]},
    "/v1/responses": {"input": SECRET},
    "/v1/messages": {"model": "fake", "messages": TALK, "max_tokens": 20},
    "/v1/messages/count_tokens": {"model": "fake", "messages": TALK},
    "/generate": {"inputs": SECRET},
    "/generate_stream": {"inputs": SECRET},
    "/tokenize": {"prompt": SECRET},
    "/detokenize": {"tokens": [3, 4]},
    "/invocations": {"messages": TALK},
}
STREAMING = ("/v1/completions", "/v1/chat/completions", "/v1/responses", "/v1/messages", "/invocations")
"""That take ``stream``."""
GENERATING = (*STREAMING, "/v1/chat/completions/batch", "/generate", "/generate_stream")


def client_of(said: str, pool: FakePool | None = None) -> TestClient:
    keys = read_keys(AccessConfig(), {"RLSERVE_API_KEYS": f"{KEY} {said}"})
    context = fake_context(pool=pool or fake_talker(), keys=keys)
    gate = Gate(create_app(context), context.keys, context.metrics, checks_host=False)
    headers = {"Authorization": f"Bearer {KEY}"}
    return TestClient(gate, raise_server_exceptions=False, headers=headers)


def kind_of(path: str, answer: httpx.Response) -> str:
    content = answer.json()
    if path in MESSAGES_PATHS:
        assert content["type"] == "error"
    kind: str = content["error"]["type"]
    return kind


def test_every_route_that_takes_a_body_is_tried() -> None:
    paths = create_app(fake_context()).openapi()["paths"]
    assert set(BODIES) == {path for path, each in paths.items() if "requestBody" in each.get("post", {})}


@pytest.mark.parametrize("path", BODIES)
def test_a_key_has_so_many_requests_a_minute(path: str) -> None:
    client = client_of("requests_per_minute=1")
    assert client.post(path, json=BODIES[path]).status_code == 200
    refused = client.post(path, json=BODIES[path])
    assert refused.status_code == 429
    assert kind_of(path, refused) == ("rate_limit_error" if path in MESSAGES_PATHS else "RateLimitError")
    assert int(refused.headers["Retry-After"]) > 0


@pytest.mark.parametrize("path", GENERATING)
def test_a_key_has_so_many_tokens_a_minute(path: str) -> None:
    pool = fake_talker()
    client = client_of("tokens_per_minute=1", pool)
    assert client.post(path, json=BODIES[path]).status_code == 200, "a whole minute's worth can be had at once"
    refused = client.post(path, json=BODIES[path])
    assert refused.status_code == 429
    assert SECRET not in refused.text
    assert len(pool.requests) == (2 if path.endswith("batch") else 1), "those of the first alone"


@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize("roles", ["metrics", "admin", "metrics+admin"])
def test_a_key_of_another_role_is_refused(path: str, roles: str) -> None:
    refused = client_of(f"roles={roles}").post(path, json=BODIES[path])
    assert refused.status_code == 403
    assert kind_of(path, refused) == ("permission_error" if path in MESSAGES_PATHS else "PermissionDeniedError")


@pytest.mark.parametrize("wrong", [{}, {"temperature": SECRET}, {SECRET: 1}], ids=["right", "value", "name"])
@pytest.mark.parametrize(
    ("path", "stream"), [*((path, False) for path in BODIES), *((path, True) for path in STREAMING)]
)
def test_no_text_is_logged_or_counted(
    path: str, stream: bool, wrong: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    pool = fake_talker()
    pool.text = f"{SECRET} said"
    client = client_of("roles=user+metrics", pool)
    with caplog.at_level(logging.DEBUG):
        answer = client.post(path, json={**BODIES[path], **({"stream": True} if stream else {}), **wrong})
    assert answer.status_code == (400 if wrong else 200)
    own = [record for record in caplog.records if record.name.startswith("rlserve")]
    assert own
    assert SECRET not in "".join(record.getMessage() for record in own)
    metrics = client.get("/metrics").text
    assert "http_requests_total" in metrics
    assert SECRET not in metrics
