"""A real Prometheus scrapes a live server as the guide says: each panel has data, each alert can be asked, one fires.

Skipped unless ``RLSERVE_PROMETHEUS`` names the program (Debian's package has ``/usr/bin/prometheus``).
"""

from __future__ import annotations

import contextlib
import math
import os
import re
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from monitoring_files import ALERTS, expressions, metrics_in, panels
from served import SMALL_ENGINE, ServedModel, served
from word_model import write_word_model

from rlserve.distributed.addresses import free_port

PROGRAM = os.environ.get("RLSERVE_PROMETHEUS", "")
pytestmark = pytest.mark.skipif(not PROGRAM, reason="RLSERVE_PROMETHEUS names no program")

GUIDE = Path(__file__).parents[2] / "docs" / "serving.md"
KEY = "a-secret"
LIMITED_KEY = "another-secret"
"""Of a client that may ask once a minute."""
DENIED = "wolf"
MOST = 8
"""Answers under way that the server lets in."""
GROWS = (
    "scaling.enabled=true",
    "scaling.max_replicas=2",
    "scaling.targets.load=0.001",
    "scaling.interval_s=0.2",
    "scaling.scale_up_window_s=0",
    "scaling.scale_up_cooldown_s=0",
)
"""To two replicas as soon as there is anything to do, so that there is a change to be shown."""
_WAIT_S = 120.0


class Prometheus:
    """Its API."""

    def __init__(self, port: int) -> None:
        self._client = httpx.Client(base_url=f"http://127.0.0.1:{port}/api/v1", timeout=30)

    def is_up(self) -> bool:
        """Whether it answers, and has reached the server."""
        with contextlib.suppress(httpx.TransportError, ValueError):
            return bool(self.query("up == 1"))
        return False

    def query(self, expression: str) -> list[dict[str, Any]]:
        """The series of an expression now; what Prometheus does not understand fails."""
        answer = self._client.get("/query", params={"query": expression})
        found = answer.json()
        assert found["status"] == "success", (expression, found)
        return list(found["data"]["result"])

    def has_data(self, expression: str) -> bool:
        """Whether there is a number that can be drawn."""
        return any(math.isfinite(float(series["value"][1])) for series in self.query(expression))

    def rules(self) -> dict[str, dict[str, Any]]:
        """Alerting rules as they stand, by name."""
        groups = self._client.get("/rules").json()["data"]["groups"]
        return {rule["name"]: rule for group in groups for rule in group["rules"]}


def configuration(folder: Path, server: ServedModel) -> Path:
    """What the guide tells Prometheus, with this server's address and key, and alerts that wait for a second."""
    (block,) = re.findall(r"```yaml\n(rule_files:.*?)```", GUIDE.read_text(), re.DOTALL)
    told = yaml.safe_load(block)
    (job,) = told["scrape_configs"]
    job["static_configs"] = [{"targets": [server.url.removeprefix("http://")]}]
    (folder / job["authorization"]["credentials_file"]).write_text(KEY)
    rules = yaml.safe_load(ALERTS.read_text())
    for group in rules["groups"]:
        for rule in group["rules"]:
            rule["for"] = "1s"
    (folder / told["rule_files"][0]).write_text(yaml.safe_dump(rules))
    told["global"] = {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"}
    path = folder / "prometheus.yaml"
    path.write_text(yaml.safe_dump(told))
    return path


@contextlib.contextmanager
def watched(folder: Path, server: ServedModel) -> Iterator[Prometheus]:
    """A Prometheus that scrapes a server while the context is open."""
    port = free_port()
    command = [
        PROGRAM,
        f"--config.file={configuration(folder, server)}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
    ]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log)
    try:
        prometheus = Prometheus(port)
        wait_for(prometheus.is_up, lambda: (folder / "log").read_text())
        yield prometheus
    finally:
        process.terminate()
        process.wait(30)


def wait_for(condition: Callable[[], object], told: Callable[[], object]) -> None:
    """Ask again and again until it holds; ``told`` says what is missing when it never does."""
    deadline = time.monotonic() + _WAIT_S
    while not condition():
        assert time.monotonic() < deadline, told()
        time.sleep(0.2)


@contextlib.contextmanager
def traffic(server: ServedModel) -> Iterator[None]:
    """One stream after the other, and now and then a request that is refused for load, one for its text, and one beyond
    the limit of its key."""
    ended, errors = threading.Event(), list[BaseException]()

    def send() -> None:
        try:
            with server.http() as client:
                while not ended.is_set():
                    body = {"model": "words", "prompt": "once upon a time " * 8, "max_tokens": 24, "ignore_eos": True}
                    client.post("/v1/completions", json={**body, "stream": True}).raise_for_status()
                    assert client.post("/v1/completions", json={**body, "n": MOST + 1}).status_code == 503
                    refused = {**body, "prompt": f"once upon a {DENIED}", "stream": False}
                    assert "content_filter" in client.post("/v1/completions", json=refused).text
                    limited = {"Authorization": f"Bearer {LIMITED_KEY}"}
                    client.post("/v1/completions", json={**body, "max_tokens": 1}, headers=limited)
        except BaseException as error:
            errors.append(error)

    sender = threading.Thread(target=send)
    sender.start()
    try:
        yield
    finally:
        ended.set()
        sender.join()
    assert not errors


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServedModel]:
    model = write_word_model(tmp_path_factory.mktemp("words"))
    folder = tmp_path_factory.mktemp("files")
    (folder / "keys").write_text(f"{LIMITED_KEY} name=limited requests_per_minute=1\n")
    (folder / "deny").write_text(f"{DENIED}\n")
    refusing = (
        f"access.keys_file={folder / 'keys'}",
        "content.filter=deny_list",
        f"content.deny_list={folder / 'deny'}",
    )
    overrides = (*SMALL_ENGINE, "engine.block_size=4", *GROWS, *refusing, f"limits.max_live_samples={MOST}")
    with served(model, "model.name=words", *overrides, key=KEY) as running:
        yield running


def drawn(expression: str) -> str:
    """An expression of the dashboard as Grafana sends it."""
    values = {"$job": "rlserve", "$model_name": ".*", "$__rate_interval": "20s"}
    for variable, value in values.items():
        expression = expression.replace(variable, value)
    return expression


def test_prometheus_finds_every_metric_and_every_panel_shows_something(tmp_path: Path, server: ServedModel) -> None:
    expected = {drawn(target["expr"]): panel["title"] for panel in panels() for target in panel["targets"]}
    names = {name for _, expression in expressions() for name in metrics_in(expression)}
    with watched(tmp_path, server) as prometheus, traffic(server):

        def empty() -> dict[str, str]:
            return {title: each for each, title in expected.items() if not prometheus.has_data(each)}

        wait_for(lambda: not empty(), empty)
        assert not [name for name in names if not prometheus.query(name)]
        for _, expression in expressions():
            prometheus.query(drawn(expression))
        rules = prometheus.rules()
        assert {rule["health"] for rule in rules.values()} == {"ok"}


def test_alerts_fire_when_a_replica_is_killed_and_when_the_server_is_gone(tmp_path: Path, server: ServedModel) -> None:
    with watched(tmp_path, server) as prometheus:

        def state(alert: str) -> str:
            return str(prometheus.rules()[alert]["state"])

        wait_for(lambda: prometheus.has_data("rlserve:lost_replicas_total"), lambda: "the server was never scraped")
        assert state("RlserveReplicaLost") == state("RlserveServerDown") == "inactive"
        server.replica_processes()[0].kill()
        wait_for(lambda: state("RlserveReplicaLost") == "firing", prometheus.rules)
        (alert,) = prometheus.rules()["RlserveReplicaLost"]["alerts"]
        assert alert["annotations"]["summary"] == f"{server.url.removeprefix('http://')} lost a replica"
        assert state("RlserveServerDown") == "inactive"
        assert server.terminate() == 0
        wait_for(lambda: state("RlserveServerDown") == "firing", prometheus.rules)
