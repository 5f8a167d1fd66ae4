"""Keys, records and deadlines of a server, with real processes."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from urllib.parse import urlsplit

from served import SMALL_ENGINE, ServedModel, served

KEY = "a-key-of-the-team"
RECORDS = ("limits.header_timeout_s=1", "accounting.generated_price=10")


def ask(server: ServedModel) -> int:
    body = {"prompt": "12+34=", "max_tokens": 7, "ignore_eos": True}
    with server.http() as client:
        return client.post("/v1/completions", json=body).status_code


def is_closed(server: ServedModel, content: bytes) -> bool:
    """Whether the server ends a connection on which nothing but this is sent."""
    place = urlsplit(server.url)
    assert place.hostname is not None
    with socket.create_connection((place.hostname, place.port or 0), timeout=60) as connection:
        connection.sendall(content)
        try:
            while connection.recv(4096):
                pass
        except ConnectionResetError:
            pass
        return True


def test_what_is_kept_of_clients_survives_a_restart(tiny_model: Path, tmp_path: Path) -> None:
    usage, audit = tmp_path / "usage.json", tmp_path / "audit.jsonl"
    keys = tmp_path / "keys"
    keys.write_text(f"{KEY} name=team requests_per_minute=2\n")
    overrides = (
        f"access.keys_file={keys}",
        f"accounting.usage_file={usage}",
        f"audit.path={audit}",
        *RECORDS,
        *SMALL_ENGINE,
    )
    with served(tiny_model, *overrides) as server:
        server.key = KEY
        assert [ask(server) for _ in range(3)] == [200, 200, 429]
        for content in (b"", b"GET / HT", b"GET /health HTTP/1.1\r\nHost: localhost\r\nX-Slow: "):
            assert is_closed(server, content)
        answered = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
        assert is_closed(server, answered + b"GET / HT"), "the head of a second request has a deadline too"
        assert server.terminate() == 0
    lines = [json.loads(line) for line in audit.read_text().splitlines()]
    asked = [line for line in lines if line["method"] == "POST"]
    assert [(line["key"], line["status"], line["num_generated_tokens"]) for line in asked] == [
        ("team", 200, 7),
        ("team", 200, 7),
        ("team", 429, 0),
    ]
    with served(tiny_model, *overrides) as server:
        server.key = KEY
        assert server.metric("rlserve:key_requests_total") == 3
        assert server.metric("rlserve:key_cost_total") == 14 * 10 / 1e6
