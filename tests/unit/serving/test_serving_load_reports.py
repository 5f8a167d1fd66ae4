"""ORCA's reports of the load: who asks gets them, in the format that was asked for."""

from __future__ import annotations

import json
from typing import Any

import pytest
from engine_numbers import some_stats
from serving_fakes import FakePool, fake_context
from starlette.testclient import TestClient

from rlserve.engine.stats.metrics import vllm_metrics
from rlserve.serving.front.app import create_app
from rlserve.serving.front.gate import Gate
from rlserve.serving.front.load_reports import load_report

CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "hi"}]}
ENGINES = {
    "0": {"vllm:kv_cache_usage_perc": 0.25, "vllm:num_requests_waiting": 1},
    "1": {"vllm:kv_cache_usage_perc": 0.75, "vllm:num_requests_waiting": 2},
}


@pytest.fixture
def pool() -> FakePool:
    made = FakePool("hello")
    made.engine_metrics = ENGINES
    return made


@pytest.fixture
def client(pool: FakePool) -> TestClient:
    return TestClient(create_app(fake_context(pool=pool)))


def test_replicas_are_told_together() -> None:
    text = "TEXT named_metrics.kv_cache_usage_perc=0.5, named_metrics.num_requests_waiting=3.0"
    assert load_report("TEXT", ENGINES) == load_report("text", ENGINES) == text
    kind, _, report = (load_report("JSON", ENGINES) or "").partition(" ")
    assert kind == "JSON"
    assert json.loads(report) == {"named_metrics": {"kv_cache_usage_perc": 0.5, "num_requests_waiting": 3.0}}


def test_the_names_are_those_of_the_engine() -> None:
    assert load_report("TEXT", {"0": vllm_metrics(some_stats())}) is not None


@pytest.mark.parametrize(("wanted", "engines"), [("BIN", ENGINES), ("", ENGINES), ("TEXT", {}), ("JSON", {"0": {}})])
def test_what_cannot_be_told_is_left_out(wanted: str, engines: Any) -> None:
    assert load_report(wanted, engines) is None


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("path", "body"), [("/v1/completions", {"prompt": "a"}), ("/v1/chat/completions", CHAT)])
def test_answers_whole_and_streamed_have_it(
    client: TestClient, pool: FakePool, path: str, body: dict[str, Any], stream: bool
) -> None:
    headers = {"endpoint-load-metrics-format": "TEXT"}
    answer = client.post(path, json={**body, "stream": stream}, headers=headers)
    assert answer.status_code == 200
    assert answer.headers["endpoint-load-metrics"].startswith("TEXT named_metrics.")
    assert "endpoint-load-metrics" not in client.post(path, json=body).headers
    assert pool.num_refreshed == 0, "no replica is asked"


def test_a_refusal_has_it_too(client: TestClient) -> None:
    refused = client.post("/v1/completions", json={}, headers={"endpoint-load-metrics-format": "JSON"})
    assert refused.status_code == 400
    assert "endpoint-load-metrics" in refused.headers


def test_without_a_key_nobody_hears_of_the_load(pool: FakePool) -> None:
    context = fake_context(pool=pool)
    client = TestClient(Gate(create_app(context), context.keys, context.metrics, checks_host=False))
    headers = {"endpoint-load-metrics-format": "TEXT"}
    for method, path, status in (("GET", "/health", 200), ("POST", "/ping", 405)):
        answer = client.request(method, path, headers=headers)
        assert answer.status_code == status
        assert "endpoint-load-metrics" not in answer.headers
    refused = client.post("/v1/completions", json={"prompt": "a"}, headers=headers)
    assert refused.status_code == 401
    assert "endpoint-load-metrics" not in refused.headers
