"""Spans reach another's OTLP endpoint, unmodified, and can be read there: arize-phoenix, which takes OTLP over HTTP."""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from served import SMALL_ENGINE, served

from rlserve.distributed.addresses import free_port

TRACE_ID, PARENT_ID = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
_WAIT_S = 120.0


class Phoenix:
    """What it has received."""

    def __init__(self, port: int, log: Path) -> None:
        self.endpoint = f"http://127.0.0.1:{port}"
        self._log = log

    def spans(self) -> list[dict[str, Any]]:
        """Of its only project; none before there is one."""
        with contextlib.suppress(httpx.TransportError):
            answer = httpx.get(f"{self.endpoint}/v1/projects/default/spans", timeout=30)
            if answer.status_code == 200:
                return list(answer.json()["data"])
        return []

    def is_ready(self) -> bool:
        with contextlib.suppress(httpx.TransportError):
            return httpx.get(f"{self.endpoint}/healthz", timeout=30).status_code == 200
        return False

    def wait(self, what: str, *, spans: int | None = None) -> list[dict[str, Any]]:
        """Until it answers, or has so many spans."""
        deadline = time.monotonic() + _WAIT_S
        while not (self.is_ready() if spans is None else len(self.spans()) >= spans):
            assert time.monotonic() < deadline, f"{what}\n{self._log.read_text()[-4000:]}"
            time.sleep(0.2)
        return self.spans()


@pytest.fixture
def phoenix(tmp_path: Path) -> Iterator[Phoenix]:
    program = Path(os.environ.get("RLSERVE_CLIENTS", "")) / "phoenix" / "bin" / "phoenix"
    if not program.exists():
        pytest.skip("phoenix is not in RLSERVE_CLIENTS")
    port, log = free_port(), tmp_path / "log"
    environment = {
        "PHOENIX_HOST": "127.0.0.1",
        "PHOENIX_PORT": str(port),
        "PHOENIX_GRPC_PORT": str(free_port()),
        "PHOENIX_WORKING_DIR": str(tmp_path),
        "PHOENIX_TELEMETRY_ENABLED": "false",
    }
    with log.open("w") as file:
        process = subprocess.Popen([program, "serve"], env={**os.environ, **environment}, stdout=file, stderr=file)
    try:
        running = Phoenix(port, log)
        running.wait("it never answered")
        yield running
    finally:
        process.terminate()
        process.wait(30)


def test_spans_are_read_back_as_they_were_sent(word_model: Path, phoenix: Phoenix) -> None:
    body = {"model": "words", "messages": [{"role": "user", "content": "zebra"}], "max_tokens": 5, "ignore_eos": True}
    headers = {"traceparent": f"00-{TRACE_ID}-{PARENT_ID}-01", "X-Request-Id": "r7"}
    overrides = ("model.name=words", f"tracing.endpoint={phoenix.endpoint}", *SMALL_ENGINE)
    with served(word_model, *overrides) as server, server.http() as client:
        assert client.post("/v1/chat/completions", json=body, headers=headers).status_code == 200
        assert client.post("/v1/chat/completions", json={**body, "stream": True}).status_code == 200
        assert client.post("/v1/completions", json={"model": "words", "prompt": "a", "n": 0}).status_code == 400
        assert server.terminate() == 0  # which sends what is left
    spans = phoenix.wait("not all spans came", spans=3)
    (below,) = [span for span in spans if span["context"]["trace_id"] == TRACE_ID]
    assert (below["parent_id"], below["name"], below["status_code"]) == (PARENT_ID, "chat words", "UNSET")
    told = _flat(below["attributes"])
    assert told["gen_ai.operation.name"] == "chat"
    assert told["gen_ai.request.id"] == "r7"
    assert told["gen_ai.usage.output_tokens"] == 5
    assert told["gen_ai.usage.input_tokens"] > 1
    assert told["rlserve.replica"] == "0"
    assert told["rlserve.weight_version"] == 0
    assert told["gen_ai.latency.e2e"] > 0
    first_tokens = [_flat(span["attributes"]).get("gen_ai.latency.time_to_first_token", 0) > 0 for span in spans]
    assert sorted(first_tokens) == [False, True, True]  # what was refused has no token
    assert "zebra" not in str(spans)


def _flat(attributes: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Names with dots, whether they came so or as trees."""
    found: dict[str, Any] = {}
    for name, value in attributes.items():
        found |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return found
