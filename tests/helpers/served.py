"""Servers as processes of their own, on free ports."""

from __future__ import annotations

import os
import queue
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import openai
import psutil

from rlserve.processes import end_all

TEMPLATE = "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}assistant: "
SMALL_ENGINE = ("engine.device=cpu", "engine.dtype=float32", "engine.kv_cache_bytes=16777216")
_START_S = 120.0
_ADDRESS = re.compile(r"serving \S+ on (\S+?)(?:/v1)?$")


class ServedModel:
    """A running ``rlserve serve``."""

    def __init__(
        self, process: subprocess.Popen[str], url: str, log: list[str], key: str | None, said: threading.Condition
    ) -> None:
        self.process = process
        self.url = url
        self.log = log
        self.key = key
        self._said = said
        """Told of each line of the log."""

    def client(self) -> openai.OpenAI:
        """OpenAI's own client, which tries nothing twice."""
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=self.key or "none", max_retries=0, timeout=120)

    def http(self) -> httpx.Client:
        headers = {"Authorization": f"Bearer {self.key}"} if self.key else {}
        return httpx.Client(base_url=self.url, headers=headers, timeout=120)

    def operator(self, key: str) -> httpx.Client:
        """For its admin listener, once its log has told the address."""
        found: list[str] = []

        def is_told() -> bool:
            found.extend(match[1] for line in self.log if (match := re.search(r"administered on (\S+)", line)))
            return bool(found)

        self.wait_for(is_told, "the address of the admin listener")
        return httpx.Client(base_url=found[0], headers={"Authorization": f"Bearer {key}"}, timeout=120)

    def replica_processes(self) -> list[psutil.Process]:
        """Of each replica, in the order of their start."""
        found = [child for child in psutil.Process(self.process.pid).children() if _is_replica(child)]
        return sorted(found, key=lambda child: child.create_time())

    def metric(self, name: str) -> float:
        """The sum of a metric over its labels."""
        with self.http() as client:
            lines = client.get("/metrics").text.splitlines()
        values = [line.rsplit(" ", 1)[1] for line in lines if re.match(rf"{re.escape(name)}(\{{.*)? ", line)]
        assert values, f"there is no metric {name}"
        return sum(map(float, values))

    def wait_for_line(self, pattern: str, start: int = 0) -> str:
        """A line of its log, those before ``start`` left out, as soon as it is there."""

        def find() -> str | None:
            return next((line for line in self.log[start:] if re.search(pattern, line)), None)

        with self._said:
            found = self._said.wait_for(find, _START_S)
        assert found is not None, f"nothing in the log is like {pattern}\n" + "\n".join(self.log[-20:])
        return found

    def wait_for(self, condition: Callable[[], bool], what: str) -> None:
        """Ask again and again, for two minutes at most."""
        deadline = time.monotonic() + _START_S
        while not condition():
            assert time.monotonic() < deadline, f"{what}\n" + "\n".join(self.log[-20:])
            time.sleep(0.05)

    def terminate(self) -> int:
        """SIGTERM; the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)


def _is_replica(process: psutil.Process) -> bool:
    """Whether it is the process of a replica, and has not ended."""
    try:
        return any("rlserve.serving.replicas.process" in word for word in process.cmdline())
    except psutil.NoSuchProcess:
        return False


@contextmanager
def served(
    model: Path | str, *overrides: str, key: str | None = None, environment: Mapping[str, str] | None = None
) -> Iterator[ServedModel]:
    """Serve a model while the context is open; with ``key``, it is the only one that is let in."""
    given = {**os.environ, **(environment or {})} | ({"RLSERVE_API_KEYS": key} if key else {})
    command = [sys.executable, "-m", "rlserve", "serve", str(model), "port=0", *overrides]
    process = subprocess.Popen(command, env=given, stderr=subprocess.PIPE, text=True)
    log: list[str] = []
    said = threading.Condition()
    addresses: queue.Queue[str | None] = queue.Queue()

    def read() -> None:
        assert process.stderr is not None
        for line in process.stderr:
            with said:
                log.append(line.rstrip())
                said.notify_all()
            if match := _ADDRESS.search(line):
                addresses.put(match[1])
        addresses.put(None)

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    try:
        url = addresses.get(timeout=_START_S)
        assert url is not None, "\n".join(log)
        yield ServedModel(process, url, log, key, said)
    finally:
        if process.poll() is None:
            processes = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
            end_all(processes)
        process.wait()
        reader.join()


@contextmanager
def served_twice(model: Path, folder: Path, *, key: str | None = None) -> Iterator[ServedModel]:
    """On two replicas, both of them ready, as ``tiny``, with a chat template that lies in ``folder``."""
    (folder / "chat.jinja").write_text(TEMPLATE)
    overrides = ("num_replicas=2", "model.name=tiny", f"model.chat_template={folder / 'chat.jinja'}", *SMALL_ENGINE)
    with served(model, *overrides, key=key) as running:
        running.wait_for(lambda: running.metric("rlserve:ready_replicas") == 2, "both replicas are ready")
        yield running


def events(response: httpx.Response) -> Iterator[Any]:
    """The contents of a stream's events, up to ``[DONE]``."""
    import json

    for line in response.iter_lines():
        if line == "data: [DONE]":
            return
        if line.startswith("data: "):
            yield json.loads(line.removeprefix("data: "))
    raise AssertionError("the stream broke off")
