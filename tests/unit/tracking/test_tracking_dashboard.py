"""The dashboard's server as a browser meets it, and as somebody who means no good."""

from __future__ import annotations

import gzip
import http.client
import json
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from conftest import write_invented_run
from small_runs import begin_run, do_steps
from test_tracking_live import STATE

from rlserve.errors import UserError
from rlserve.tracking import jsonl
from rlserve.tracking.dashboard.server import DashboardServer, natural_order
from rlserve.tracking.owner import owned
from rlserve.tracking.run_state import find_runs

EVIL = "<img src=x onerror=alert(1)>"
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[DashboardServer]:
    write_invented_run(tmp_path / "runs", name="my run", num_slots=6, num_steps=30, step_s=4.0)
    folder, tracker = begin_run(tmp_path / "runs", EVIL, num_steps=9)
    do_steps(tracker, 1, 3)
    tracker.show(STATE)
    (tmp_path / "secret.txt").write_text("secret")
    with owned(folder.path), DashboardServer(lambda: find_runs(tmp_path / "runs")) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()
    tracker.close(0)


def ask(server: DashboardServer, path: str, method: str = "GET", **headers: str) -> http.client.HTTPResponse:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=20)
    connection.putrequest(method, path, skip_host="Host" in headers)
    for name, value in headers.items():
        connection.putheader(name, value)
    connection.endheaders()
    return connection.getresponse()


def read(server: DashboardServer, path: str) -> Any:
    answer = ask(server, path)
    assert answer.status == 200
    return json.loads(answer.read())


def test_all_of_a_run_is_there(server: DashboardServer) -> None:
    names = {run["name"]: run["state"] for run in read(server, "/api/runs")["runs"]}
    assert names == {EVIL: "running", "my run": "finished"}
    ended = read(server, "/api/run/my%20run")
    assert ended["live"] is None
    assert [slot["label"] for slot in ended["slots"]] == [f"{kind}/{n}" for kind in ("H100", "H200") for n in range(3)]
    assert len(ended["points"]) == 30
    judged = [move for move in ended["moves"] if move["realised"] is not None]
    assert judged
    assert all(move["predicted"] >= 0.08 - 1e-9 and move["realised_error"] > 0.0 for move in judged)
    alive = read(server, f"/api/run/{quote(EVIL)}")
    assert alive["generated_tokens_per_s"] == 812.5
    assert [gang["state"] for gang in alive["live"]["gangs"]] == ["train", "rollout"]
    labels = [slot["label"] for slot in alive["slots"]]
    assert labels == ["H100/0", "H200/0-1", "cpu-a/0", "cpu-b/0"], "also a gang that has not changed hands lately"


def test_slots_that_changed_hands_long_ago_are_drawn(server: DashboardServer, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = read(server, "/api/run/my%20run")
    monkeypatch.setattr(jsonl, "END_BYTES", 2000)
    short = read(server, "/api/run/my%20run")
    assert len(short["points"]) < len(whole["points"])
    assert short["slots"] == whole["slots"]


def test_a_damaged_run_is_named_and_hides_no_other(server: DashboardServer) -> None:
    (folder,) = (folder for folder in server.find_runs() if folder.name == "my run")
    folder.metrics_file.write_text("no JSON\n")
    assert [run["name"] for run in read(server, "/api/runs")["runs"]] == [EVIL]
    answer = ask(server, "/api/run/my%20run")
    assert answer.status == 500
    assert "metrics.jsonl:1" in json.loads(answer.read())["error"]


@pytest.mark.parametrize(
    "path",
    [
        "/api/run/..",
        "/api/run/../secret.txt",
        "/api/run/%2e%2e%2fsecret.txt",
        "/api/run/my%20run/metrics.jsonl",
        "/../secret.txt",
        "/%2e%2e/secret.txt",
        "//secret.txt",
        "/server.py",
        "/api/run/",
        "/api/run/nosuch",
        "/nosuch",
    ],
)
def test_nothing_else_is_there(server: DashboardServer, path: str) -> None:
    answer = ask(server, path)
    assert answer.status == 404
    assert b"secret" not in answer.read()


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS"])
def test_it_can_only_be_read_from(server: DashboardServer, method: str) -> None:
    assert ask(server, "/api/runs", method).status == 501


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "127.0.0.1.evil.example", "", "localhost@evil"])
def test_another_name_for_this_machine_is_refused(server: DashboardServer, host: str) -> None:
    answer = ask(server, "/api/runs", Host=host)
    assert answer.status == 403
    assert b"my run" not in answer.read()


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1:80", "[::1]:80", "[::1]", "localhost:1234"])
def test_this_machines_own_names_are_not(server: DashboardServer, host: str) -> None:
    assert ask(server, "/api/runs", Host=host).status == 200


def test_the_page_needs_nothing_from_elsewhere(server: DashboardServer) -> None:
    page, script = ask(server, "/"), ask(server, "/dashboard.js").read().decode()
    assert "script-src 'self'" in page.headers["Content-Security-Policy"]
    assert page.headers["X-Content-Type-Options"] == "nosniff"
    text = page.read().decode()
    assert not re.search(r"https?://", text + script)
    assert re.findall(r'src="([^"]+)"', text) == ["/plotly.js", "/dashboard.js"]
    assert "innerHTML" not in script
    library = ask(server, "/plotly.js")
    assert library.headers["Content-Encoding"] == "gzip"
    assert b"plotly.js (basic - minified)" in gzip.decompress(library.read())[:200]


def test_it_listens_on_the_loopback_interface_and_says_where_a_port_is_taken(server: DashboardServer) -> None:
    assert server.server_address[0] == "127.0.0.1"
    assert server.url == f"http://127.0.0.1:{server.server_port}/"
    with pytest.raises(UserError, match=f"port {server.server_port} on 127.0.0.1"):
        DashboardServer(list, port=server.server_port)


def test_slots_stand_in_the_order_of_their_numbers() -> None:
    labels = ["H100/10", "H200/0", "H100/2", "a", "H100/2-3"]
    assert sorted(labels, key=natural_order) == ["H100/2", "H100/2-3", "H100/10", "H200/0", "a"]


@pytest.mark.skipif(BROWSER is None, reason="no Chromium or Chrome here")
def test_a_real_browser_draws_it(server: DashboardServer, tmp_path: Path) -> None:
    command = [
        str(BROWSER),
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        f"--user-data-dir={tmp_path / 'browser'}",
        "--virtual-time-budget=4000",
        "--dump-dom",
        f"{server.url}#my%20run",
    ]
    found = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    assert '<h1 id="name">my run</h1>' in found
    assert re.search(r'<p id="error" role="alert"></p>', found)
    assert found.count('class="main-svg"') >= 3, "all figures are drawn"
    assert "H200/2" in found
    assert re.search(r">[+\u2212]\d+\.\d % ± \d+\.\d %<", found), "what a move gained"
