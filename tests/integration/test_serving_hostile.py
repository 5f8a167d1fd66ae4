"""What a server answers to bodies and headers that nobody should send, and whether it serves on."""

from __future__ import annotations

import json
import socket
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pytest
from served import ServedModel, served_twice

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

from serving_parts.hostile_requests import find_fault, hostile_requests

PROMPT = "12+34="
NUM_DRAWN = 600
"""The benchmark sends ten thousand."""


@pytest.fixture(scope="module")
def server(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServedModel]:
    with served_twice(tiny_model, tmp_path_factory.mktemp("template")) as running:
        yield running


HOSTILE_BODIES: list[bytes] = [
    b"",
    *(b"null", b"[]", b"3", b'"text"', b"true", b"{", b"}", b"[", b"nul", b"{}", b"\x00", b"\xff\xfe", b"NaN"),
    *(b'{"prompt": "\xff"}', b'{"prompt": "\\ud800"}', b'{"prompt": "\\udc00x"}', b'{"prompt": NaN}'),
    *(b"[" * 100_000, b'{"prompt":' * 50_000, b'{"prompt": ' + b"[" * 1000 + b"]" * 1000 + b"}"),
    *(b'{"messages": ' + body + b"}" for body in (b"null", b"[]", b"[null]", b"[[]]", b"{}", b"3", b'["x"]', b"[{}]")),
    *(b'{"prompt": ' + body + b"}" for body in (b"null", b"{}", b"[]", b"[[]]", b"[null]", b"[1, null]", b"[[1], 2]")),
    b'{"prompt": [1e400]}',
    b'{"prompt": ["x", 3]}',
    b'{"prompt": [' + b"1," * 2_000_000 + b"1]}",
    b'{"prompt": "x", "prompt": null}',
    b'{"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://a"}}]}]}',
    b'{"messages": [{"role": 3, "content": "x"}]}',
]
WRONG_VALUES = [
    *("null_", "-1", "1e999", "9" * 400, '"x"', "[]", "{}", "true", "NaN", "-Infinity", "[[[[]]]]", '"\\ud800"')
]
WRONG_FIELDS = [
    *("max_tokens", "temperature", "top_p", "n", "seed", "stop", "logit_bias", "logprobs", "min_tokens", "top_k"),
    *("stop_token_ids", "presence_penalty", "stream", "stream_options", "model", "priority", "bad_words"),
]
FINE = {("temperature", "true"), ("stop", "[]"), ("stop", '"x"'), ("logit_bias", "{}"), ("stop_token_ids", "[]")}
FINE |= {("bad_words", "[]"), ("top_k", "-1"), ("seed", "-1"), ("priority", "-1"), ("presence_penalty", "-1")}
FINE |= {("stream", "true"), ("presence_penalty", "true")}


def hostile_bodies() -> list[bytes]:
    bodies = list(HOSTILE_BODIES)
    for field in WRONG_FIELDS:
        for value in WRONG_VALUES:
            if (field, value) not in FINE:
                bodies.append(f'{{"prompt": "1+1=", "{field}": {value}}}'.encode())
    good = json.dumps({"prompt": PROMPT, "max_tokens": 5}).encode()
    bodies += [good[:length] for length in range(1, len(good))]
    return bodies


def test_each_hostile_body_gets_its_own_error(server: ServedModel) -> None:
    good = {"prompt": PROMPT, "max_tokens": 20, "temperature": 0}
    bodies = hostile_bodies()
    assert len(bodies) > 250
    with server.http() as client:
        before = client.post("/v1/completions", json=good).json()["choices"]
        for path in ("/v1/completions", "/v1/chat/completions", "/tokenize", "/detokenize"):
            for body in bodies:
                answer = client.post(path, content=body, headers={"Content-Type": "application/json"})
                if path == "/tokenize" and answer.status_code == 200:
                    continue  # texts that are short are no harm there
                assert 400 <= answer.status_code < 500, (path, body[:200], answer.status_code, answer.text)
                error = answer.json()["error"]
                assert error["message"]
                assert error["code"] == answer.status_code
        assert client.post("/v1/completions", json=good).json()["choices"] == before
    assert len(server.replica_processes()) == 2


def test_drawn_hostile_requests_get_the_error_that_they_deserve(server: ServedModel) -> None:
    good = {"prompt": PROMPT, "max_tokens": 20, "temperature": 0}
    pids = [process.pid for process in server.replica_processes()]
    with server.http() as client:
        before = client.post("/v1/completions", json=good).json()["choices"]
        for request in islice(hostile_requests(seed=7), NUM_DRAWN):
            kind = {"Content-Type": request.content_type} if request.content_type else {}
            headers = {**kind, **request.headers}
            answer = client.request(request.method, request.path, content=request.body, headers=headers)
            fault = find_fault(request, answer.status_code, answer.content)
            assert fault is None, (request.method, request.path, request.body[:200])
        assert client.post("/v1/completions", json=good).json()["choices"] == before
    assert [process.pid for process in server.replica_processes()] == pids


def test_large_bodies_and_other_types_are_refused(server: ServedModel) -> None:
    with server.http() as client:
        large = client.post("/v1/completions", json={"prompt": "1" * 9_000_000})
        assert large.status_code == 413
        chunked = client.post(
            "/v1/completions",
            content=(b"1" * 100_000 for _ in range(100)),
            headers={"Content-Type": "application/json"},
        )
        assert chunked.status_code == 413
        assert client.post("/v1/completions", content=b'{"prompt": "1"}').status_code == 415
        form = client.post("/v1/completions", data={"prompt": "1"})
        assert form.status_code == 415
        assert client.get("/v1/completions").status_code == 405
        assert client.get("/nothing/here").json()["error"]["code"] == 404


def send_on_and_on(connection: socket.socket, head: bytes) -> None:
    connection.sendall(head)
    for _ in range(1000):
        connection.sendall(b"x" * 65_536)


@pytest.mark.parametrize("head", [b"GET /health HTTP/1.1\r\nX: ", b"GET /", b"POST / HTTP/1.1\r\nA: b\r\nA: "])
def test_endless_headers_end_the_connection(server: ServedModel, head: bytes) -> None:
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=60) as connection, pytest.raises(ConnectionError):
        send_on_and_on(connection, head)
    with server.http() as client:
        assert client.get("/health").status_code == 200
