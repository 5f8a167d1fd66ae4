"""The server of ``rlserve dashboard``.

::

    GET /               page.html
    GET /dashboard.js   asks the next two every second or two, and draws by
    GET /plotly.js      plotly.js, as it lies in the package
    GET /api/runs       names and states of the runs
    GET /api/run/NAME   all of one run

It can only be read from, and only by browsers of this machine: it listens on the loopback interface, and a request for
another host name than this one's is refused, so that no page from elsewhere can reach it by a name of its own (DNS
rebinding). A run is looked up among those that there are; no path is ever made of what was asked for.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from typing import Any
from urllib.parse import unquote, urlsplit

from rlserve.errors import DataError, UserError
from rlserve.tracking.jsonl import read_last_json_lines, to_json_line
from rlserve.tracking.report import LIBRARY
from rlserve.tracking.run_folder import RunFolder
from rlserve.tracking.run_state import RunState, read_run_state
from rlserve.tracking.run_view import SPLIT_LINES, RunView, read_run_view
from rlserve.tracking.timeline.ownership import Interval, slot_timelines

logger = logging.getLogger(__name__)

LOOPBACK = "127.0.0.1"
HOST_NAMES = ("127.0.0.1", "localhost", "[::1]")
MAX_NUM_SLOTS = 64
"""Whose timeline is drawn."""
HEADERS: Mapping[str, str] = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; connect-src 'self'; style-src 'unsafe-inline'; "
    "img-src data: blob:; frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
_STATIC: Mapping[str, tuple[str, str, str]] = {
    "/": ("rlserve.tracking.dashboard", "page.html", "text/html"),
    "/dashboard.js": ("rlserve.tracking.dashboard", "dashboard.js", "text/javascript"),
    "/plotly.js": ("rlserve.tracking.report", LIBRARY, "text/javascript"),
}

FindRuns = Callable[[], list[RunFolder]]


class DashboardServer(ThreadingHTTPServer):
    """Serves until ``shutdown`` is called.

    Args:
        find_runs: the runs that may be looked at, as of now.
        port: 0 takes a free one.
        host: address to listen on.

    Raises:
        UserError: the port is taken, or the address is not of this machine.
    """

    daemon_threads = True

    def __init__(self, find_runs: FindRuns, *, port: int = 0, host: str = LOOPBACK) -> None:
        self.find_runs = find_runs
        self.host_names = {*HOST_NAMES, host}
        try:
            super().__init__((host, port), _Handler)
        except OSError as error:
            raise UserError(f"port {port} on {host} cannot be listened on: {error}; choose another --port") from error

    @property
    def url(self) -> str:
        """Where a browser finds it."""
        return f"http://{self.server_address[0]!s}:{self.server_port}/"


class _Handler(BaseHTTPRequestHandler):
    server: DashboardServer
    server_version, sys_version = "rlserve", ""
    timeout = 30.0
    """Seconds that a browser may take to say what it wants."""

    def do_GET(self) -> None:
        if not self._is_meant():
            self._answer(HTTPStatus.FORBIDDEN, b"not this host\n", "text/plain")
            return
        path = urlsplit(self.path).path
        if path in _STATIC:
            package, name, kind = _STATIC[path]
            self._answer(HTTPStatus.OK, files(package).joinpath(name).read_bytes(), kind, packed=name.endswith(".gz"))
            return
        try:
            content = self._content(path)
        except (DataError, OSError) as error:
            logger.warning("%s", error)
            self._json(HTTPStatus.INTERNAL_SERVER_ERROR, {"error": str(error)})
            return
        if content is None:
            self._json(HTTPStatus.NOT_FOUND, {"error": "there is no such run, or page"})
        else:
            self._json(HTTPStatus.OK, content)

    def _is_meant(self) -> bool:
        """Whether the browser asked for this machine, by a name that only this machine has."""
        name = self.headers.get("Host", "").rsplit(":", 1)
        host = name[0] if len(name) == 1 or name[1].isdigit() else ":".join(name)
        return host in self.server.host_names

    def _content(self, path: str) -> Mapping[str, Any] | None:
        runs = self.server.find_runs()
        if path == "/api/runs":
            states = (state for folder in runs if (state := _state(folder)) is not None)
            newest_first = sorted(states, key=lambda state: state.begun_s, reverse=True)
            return {"runs": [{"name": state.name, "state": state.state, "step": state.step} for state in newest_first]}
        name = unquote(path.removeprefix("/api/run/")) if path.startswith("/api/run/") else None
        return next((run_content(folder) for folder in runs if folder.name == name), None)

    def _json(self, status: HTTPStatus, content: Mapping[str, Any]) -> None:
        self._answer(status, to_json_line(content).encode("utf-8"), "application/json")

    def _answer(self, status: HTTPStatus, body: bytes, kind: str, *, packed: bool = False) -> None:
        self.send_response(status)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        if packed:
            self.send_header("Content-Encoding", "gzip")
        for name, value in HEADERS.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: Any) -> None:
        logger.debug(format, *arguments)


def _state(folder: RunFolder) -> RunState | None:
    """One damaged run must not hide the others."""
    try:
        return read_run_state(folder)
    except DataError as error:
        logger.warning("%s is left out: %s", folder.name, error)
        return None


def run_content(folder: RunFolder) -> dict[str, Any]:
    """A run as the page draws it: plain data."""
    view = read_run_view(folder)
    return {
        **asdict(view),
        "generated_tokens_per_s": view.generated_tokens_per_s,
        "trained_tokens_per_s": view.trained_tokens_per_s,
        "slots": _slots(folder, view),
    }


def _slots(folder: RunFolder, view: RunView) -> list[dict[str, Any]]:
    """Whose each slot was. A gang that has not changed hands yet has had its role all the time."""
    events = read_last_json_lines(folder.events_file, also=SPLIT_LINES)
    times_s = [event["time_s"] for event in events] or [0.0]
    end_s = max([*times_s, *([view.live.time_s] if view.live else [])])
    rows = slot_timelines(events, end_s)
    shown: list[dict[str, Any]] = [
        {"label": row.label, "intervals": [asdict(interval) for interval in row.intervals]} for row in rows
    ]
    changed = {row.gang_id for row in rows}
    for gang in view.live.gangs if view.live else ():
        if gang.id not in changed:
            always = Interval(owner=gang.owner, start_s=min(times_s), end_s=end_s)
            shown.append({"label": gang.id, "intervals": [asdict(always)]})
    return sorted(shown, key=lambda row: natural_order(row["label"]))[:MAX_NUM_SLOTS]


def natural_order(label: str) -> list[tuple[int, str]]:
    """``H100/2`` before ``H100/10``."""
    return [(int(part), "") if part.isdigit() else (0, part) for part in re.split(r"(\d+)", label)]
