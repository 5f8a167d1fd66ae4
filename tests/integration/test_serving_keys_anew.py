"""SIGHUP has a server read its keys anew, while requests of a key that leaves go on."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from served import SMALL_ENGINE, ServedModel, events, served

OLD, NEW = "the-old-key-1", "the-new-key-2"


@pytest.fixture
def keys_file(tmp_path: Path) -> Path:
    file = tmp_path / "keys"
    file.write_text(f"{OLD} name=team\n")
    return file


@pytest.fixture
def server(tiny_model: Path, keys_file: Path) -> Iterator[ServedModel]:
    with served(tiny_model, "model.name=tiny", f"access.keys_file={keys_file}", *SMALL_ENGINE) as running:
        yield running


def status(server: ServedModel, key: str) -> int:
    return httpx.get(f"{server.url}/v1/models", headers={"Authorization": f"Bearer {key}"}, timeout=60).status_code


def reload(server: ServedModel, told: str) -> None:
    start = len(server.log)
    server.process.send_signal(signal.SIGHUP)
    server.wait_for_line(told, start)


def test_keys_come_and_go_on_a_signal(server: ServedModel, keys_file: Path) -> None:
    assert (status(server, OLD), status(server, NEW)) == (200, 401)
    keys_file.write_text(f"{OLD} name=team\n{NEW} name=team\n")
    assert status(server, NEW) == 401, "nothing is read before the signal"
    reload(server, "2 API keys: 1 are new, 0 are gone")
    assert (status(server, OLD), status(server, NEW)) == (200, 200)

    body = {"prompt": "12+34=", "max_tokens": 200, "ignore_eos": True, "stream": True}
    headers = {"Authorization": f"Bearer {OLD}"}
    url = f"{server.url}/v1/completions"
    with httpx.stream("POST", url, json=body, headers=headers, timeout=60) as stream:
        chunks = events(stream)
        next(chunks)
        keys_file.write_text(f"{NEW} name=team\n")
        reload(server, "1 API keys: 0 are new, 1 are gone")
        assert (status(server, OLD), status(server, NEW)) == (401, 200)
        (last,) = [chunk for chunk in chunks if chunk["choices"][0]["finish_reason"] is not None]
    assert last["choices"][0]["finish_reason"] == "length"

    for mistake, told in (
        ("", "no API keys any more"),
        ("short roles=admin", "at least 8"),
        (f"{OLD} rolls=user", "rolls"),
    ):
        keys_file.write_text(mistake + "\n")
        reload(server, f"the keys stay as they are: .*{told}")
        assert (status(server, OLD), status(server, NEW)) == (401, 200)
    assert server.terminate() == 0
