"""A server by itself: what its metrics say at once, and a Unix socket."""

from __future__ import annotations

from pathlib import Path

import httpx
from served import SMALL_ENGINE, served

PROMPT = "12+34="


def test_metrics_count_what_was_answered_just_now() -> None:
    def total(name: str, http: httpx.Client) -> float:
        return sum(float(line.split()[-1]) for line in http.get("/metrics").text.splitlines() if line.startswith(name))

    with served("builtin:addition", *SMALL_ENGINE) as server, server.client() as client, server.http() as http:
        for number in range(5):
            before = total("vllm:generation_tokens_total", http), total("vllm:iteration_tokens_total_sum", http)
            usage = client.completions.create(
                model="builtin:addition", prompt=f"{number}+{number}=", max_tokens=9, extra_body={"ignore_eos": True}
            ).usage
            assert usage is not None
            assert usage.prompt_tokens_details is not None
            num_computed = usage.prompt_tokens - (usage.prompt_tokens_details.cached_tokens or 0)
            assert total("vllm:generation_tokens_total", http) == before[0] + 9
            assert total("vllm:iteration_tokens_total_sum", http) == before[1] + num_computed + 9


def test_clients_come_by_a_unix_socket_too(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with served("builtin:addition", *SMALL_ENGINE, f"unix_socket={path}", "root_path=/llm") as here:
        assert here.url == f"unix:{path}"
        with httpx.Client(transport=httpx.HTTPTransport(uds=str(path)), base_url="http://elsewhere/llm") as client:
            answer = client.post("/v1/completions", json={"prompt": PROMPT, "max_tokens": 3}, timeout=120)
            assert answer.json()["usage"]["completion_tokens"] == 3
        assert here.terminate() == 0
    assert not path.exists()
