"""The probes of the clouds, against a metadata service on loopback that answers as theirs do, and as they refuse."""

from __future__ import annotations

import json
import threading
import urllib.error
from collections.abc import Iterator
from datetime import UTC, datetime
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from rlserve.pool.config import CLOUD_PROBES, PoolConfig
from rlserve.pool.notices.probes import aws, azure, google
from rlserve.pool.notices.probes.factory import CLOUDS, find_probe

NOW_S = 1_800_000_000.0


def now() -> float:
    return NOW_S


class Metadata:
    """Answers by method and path, to whoever sends the header that goes with them."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.answers: dict[tuple[str, str], str] = {}
        self.wanted_header: tuple[str, str] = ("", "")


@pytest.fixture
def metadata() -> Iterator[Metadata]:
    class Handler(BaseHTTPRequestHandler):
        def _answer(self) -> None:
            text = service.answers.get((self.command, self.path))
            name, value = service.wanted_header
            is_allowed = self.command == "PUT" or self.headers.get(name) == value
            self.send_response(401 if not is_allowed else 404 if text is None else 200)
            self.end_headers()
            if is_allowed and text is not None:
                self.wfile.write(text.encode())

        do_GET = do_PUT = _answer

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    service = Metadata(f"http://127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield service
    server.shutdown()
    server.server_close()
    thread.join()


def test_aws_tells_when_the_instance_is_stopped(metadata: Metadata, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")  # nobody answers there
    metadata.answers["PUT", "/latest/api/token"] = "secret"
    metadata.wanted_header = ("X-aws-ec2-metadata-token", "secret")
    assert aws.probe(metadata.address, now=now) is None
    when = datetime.fromtimestamp(NOW_S + 118, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    action = json.dumps({"action": "terminate", "time": when})
    metadata.answers["GET", "/latest/meta-data/spot/instance-action"] = action
    assert aws.probe(metadata.address, now=now) == 118.0
    assert aws.probe(metadata.address, now=lambda: NOW_S + 500) == 0.0
    metadata.answers["PUT", "/latest/api/token"] = "of another time"
    with pytest.raises(urllib.error.HTTPError, match="401"):
        aws.probe(metadata.address, now=now)


def test_google_says_yes_or_no(metadata: Metadata) -> None:
    metadata.wanted_header = ("Metadata-Flavor", "Google")
    path = "/computeMetadata/v1/instance/preempted"
    metadata.answers["GET", path] = "FALSE"
    assert google.probe(metadata.address) is None
    metadata.answers["GET", path] = "TRUE\n"
    assert google.probe(metadata.address) == 30.0


def test_azure_names_the_machines_that_an_event_is_for(metadata: Metadata) -> None:
    metadata.wanted_header = ("Metadata", "true")
    metadata.answers["GET", "/metadata/instance/compute/name?api-version=2021-02-01&format=text"] = "node_7"
    events = "/metadata/scheduledevents?api-version=2020-07-01"
    soon = format_datetime(datetime.fromtimestamp(NOW_S + 42, UTC), usegmt=True)

    def announce(*events_of: tuple[str, str, str]) -> None:
        listed = [{"EventType": kind, "Resources": [name], "NotBefore": when} for kind, name, when in events_of]
        metadata.answers["GET", events] = json.dumps({"DocumentIncarnation": 1, "Events": listed})

    announce()
    assert azure.probe(metadata.address, now=now) is None
    announce(("Preempt", "node_8", soon), ("Reboot", "node_7", soon))
    assert azure.probe(metadata.address, now=now) is None
    announce(("Preempt", "node_8", ""), ("Preempt", "node_7", soon))
    assert azure.probe(metadata.address, now=now) == 42.0
    announce(("Preempt", "node_7", ""))
    assert azure.probe(metadata.address, now=now) == 0.0


@pytest.mark.parametrize("name", CLOUD_PROBES)
def test_a_cloud_is_chosen_by_its_name(name: str) -> None:
    assert PoolConfig(notice_probe=name).notice_probe == name
    assert find_probe(name) is CLOUDS[name]
    assert set(CLOUDS) == set(CLOUD_PROBES)
