"""Spans of requests, up to what a receiver of OTLP over HTTP reads with OpenTelemetry's own messages."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status
from serving_fakes import KEY, FakePool, fake_context
from starlette.testclient import TestClient

from rlserve.serving.config import ServeConfig, ServedModelConfig, TracingConfig
from rlserve.serving.front.app import create_app
from rlserve.serving.front.gate import Gate
from rlserve.serving.observing.tracing import Tracing, create_tracing

TRACE_ID, PARENT_ID = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
SECRET = "zebra"


class Collector:
    """Takes OTLP over HTTP."""

    def __init__(self) -> None:
        received = self.received = []  # type: list[ExportTraceServiceRequest]

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                assert self.path == "/v1/traces"
                assert self.headers["Content-Type"] == "application/x-protobuf"
                received.append(
                    ExportTraceServiceRequest.FromString(self.rfile.read(int(self.headers["Content-Length"])))
                )
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.endpoint = f"http://127.0.0.1:{self.server.server_port}"

    def spans(self) -> list[Span]:
        return [
            span
            for each in self.received
            for of_resource in each.resource_spans
            for of_scope in of_resource.scope_spans
            for span in of_scope.spans
        ]


@pytest.fixture
def collector() -> Iterator[Collector]:
    made = Collector()
    thread = threading.Thread(target=made.server.serve_forever)
    thread.start()
    yield made
    made.server.shutdown()
    thread.join()
    made.server.server_close()


def serve(tracing: Tracing | None, pool: FakePool | None = None) -> TestClient:
    context = replace(fake_context(pool=pool), tracing=tracing)
    gate = Gate(create_app(context), context.keys, context.metrics, checks_host=False, tracing=tracing)
    return TestClient(gate, headers={"Authorization": f"Bearer {KEY}"}, raise_server_exceptions=False)


def start(collector: Collector, **values: Any) -> Tracing:
    tracing = create_tracing(TracingConfig(endpoint=collector.endpoint, **values), "fake")
    assert tracing is not None
    return tracing


def attributes(span: Span) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for each in span.attributes:
        kind = each.value.WhichOneof("value")
        value = getattr(each.value, kind)
        found[each.key] = [item.string_value for item in value.values] if kind == "array_value" else value
    return found


@pytest.mark.parametrize("streamed", [False, True])
def test_a_request_is_a_span_below_the_clients_own(collector: Collector, streamed: bool) -> None:
    tracing = start(collector, service_name="chat-backend")
    body = {"messages": [{"role": "user", "content": SECRET}], "max_tokens": 9, "temperature": 0.5, "stream": streamed}
    headers = {"traceparent": f"00-{TRACE_ID}-{PARENT_ID}-01", "X-Request-Id": "r7"}
    assert serve(tracing).post("/v1/chat/completions", json=body, headers=headers).status_code == 200
    tracing.close()
    (span,) = collector.spans()
    assert (span.name, span.kind) == ("chat fake", Span.SPAN_KIND_SERVER)
    assert (span.trace_id.hex(), span.parent_span_id.hex()) == (TRACE_ID, PARENT_ID)
    assert span.end_time_unix_nano > span.start_time_unix_nano > 0
    told = attributes(span)
    assert told["gen_ai.operation.name"] == "chat"
    assert told["gen_ai.request.model"] == told["gen_ai.response.model"] == "fake"
    assert told["gen_ai.request.id"] == "r7"
    assert told["gen_ai.request.max_tokens"] == 9
    assert told["gen_ai.request.temperature"] == 0.5
    assert told["gen_ai.usage.output_tokens"] == told["gen_ai.usage.completion_tokens"] == len("hello")
    assert told["gen_ai.usage.input_tokens"] == told["gen_ai.usage.prompt_tokens"] > len(SECRET)
    assert told["gen_ai.response.finish_reasons"] == ["length"]
    assert told["rlserve.weight_version"] == 3
    assert told["http.response.status_code"] == 200
    assert told["gen_ai.latency.e2e"] > 0
    assert ("gen_ai.latency.time_to_first_token" in told) is streamed  # of a whole answer, the engine says it
    resource = {
        each.key: each.value.string_value for each in collector.received[0].resource_spans[0].resource.attributes
    }
    assert resource["service.name"] == "chat-backend"
    assert SECRET not in str(collector.received)


def test_a_request_that_is_refused_has_a_span_without_a_generation(collector: Collector) -> None:
    tracing = start(collector)
    client = serve(tracing)
    assert client.post("/v1/completions", json={"prompt": "a", "max_tokens": 10_000}).status_code == 400
    assert client.get("/v1/models").status_code == 200  # which generates nothing
    tracing.close()
    (span,) = collector.spans()
    assert attributes(span)["http.response.status_code"] == 400
    assert "gen_ai.usage.input_tokens" not in attributes(span)
    assert span.parent_span_id == b""


def test_what_the_server_cannot_answer_is_an_error(collector: Collector, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise KeyError(SECRET)

    monkeypatch.setattr("rlserve.serving.front.routes.completions.admit", fail)
    tracing = start(collector)
    assert serve(tracing).post("/v1/completions", json={"prompt": "a"}).status_code == 500
    tracing.close()
    (span,) = collector.spans()
    assert span.status.code == Status.STATUS_CODE_ERROR
    assert SECRET not in str(span)


@pytest.mark.parametrize(("flags", "ratio", "expected"), [("01", 0.0, 1), ("00", 1.0, 0)])
def test_the_client_decides_whether_its_own_requests_are_traced(
    collector: Collector, flags: str, ratio: float, expected: int
) -> None:
    tracing = start(collector, sample_ratio=ratio)
    headers = {"traceparent": f"00-{TRACE_ID}-{PARENT_ID}-{flags}"}
    serve(tracing).post("/v1/completions", json={"prompt": "a", "max_tokens": 2}, headers=headers)
    tracing.close()
    assert len(collector.spans()) == expected


def test_nothing_is_noted_while_nobody_traces(monkeypatch: pytest.MonkeyPatch) -> None:
    assert create_tracing(ServeConfig(model=ServedModelConfig(path="m")).tracing, "m") is None
    monkeypatch.setattr("rlserve.serving.front.gate.GenerationRecord", None)  # making one would fail
    assert serve(None).post("/v1/completions", json={"prompt": "a", "max_tokens": 2}).status_code == 200
