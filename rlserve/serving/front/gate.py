"""What every request passes before any route, whatever its path: its name, the host, the key; and its record after.

As ASGI middleware around the whole application, so that a new route is behind it without anybody's thinking of it.
"""

from __future__ import annotations

import logging
import re
import secrets
import time
from typing import Any

import orjson
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rlserve.json_log import REQUEST_FIELDS, RequestFields
from rlserve.serving.config import LOOPBACK_HOSTS
from rlserve.serving.front.caller import Caller, enter
from rlserve.serving.front.error_shapes import MESSAGES_PATHS, error_body
from rlserve.serving.keys import Keys, Role
from rlserve.serving.metrics import ServerMetrics
from rlserve.serving.observing.record import GENERATION_RECORD, GenerationRecord
from rlserve.serving.observing.tracing import Tracing
from rlserve.serving.protocol.errors import ApiError
from rlserve.serving.rate_limits import AllLimits
from rlserve.serving.records import Records

logger = logging.getLogger(__name__)

OPEN_PATHS = frozenset({"/health", "/ready", "/ping", "/", "/page.css", "/page.js"})
"""That are answered without a key: probes have none, and the page asks its reader for it. ``/health?generate=1`` wants
one."""
_REQUEST_ID = re.compile(r"[\w.:-]{1,128}", re.ASCII)


class Gate:
    """
    Args:
        app: what is behind it.
        checks_host: whether only hosts of this machine are answered: a page in a browser that has its own name point
            here is not. With keys that can be guessed they are anyway, but for a Unix socket.
        tracing: None traces nothing.
        role: what keys need for all paths but ``/metrics``.
        records: of what clients take, and of all requests; None keeps none.
    """

    def __init__(
        self,
        app: ASGIApp,
        keys: Keys,
        metrics: ServerMetrics,
        *,
        checks_host: bool,
        open_paths: frozenset[str] = OPEN_PATHS,
        tracing: Tracing | None = None,
        role: Role = Role.USER,
        records: Records | None = None,
    ) -> None:
        self._app = app
        self._keys = keys
        self._metrics = metrics
        self._checks_host = checks_host
        self._open_paths = open_paths
        self._tracing = tracing
        self._role = role
        self._records = records
        self._limits = AllLimits()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        request_id = _request_id(headers)
        # The server answers each request in a task of its own, whose variables end with it.
        fields = RequestFields(request_id=request_id)
        REQUEST_FIELDS.set(fields)
        record = GenerationRecord() if self._tracing is not None else None
        GENERATION_RECORD.set(record)
        caller = Caller(keeps_body=self._records is not None and self._records.has_text)
        enter(caller)
        start, status = time.perf_counter(), 500

        async def send_named(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                answer = MutableHeaders(scope=message)
                answer["X-Request-Id"] = request_id
                if scope["path"] in MESSAGES_PATHS:
                    answer["Request-Id"] = request_id  # Anthropic's name for it
                if caller.limits is not None:
                    answer.update(caller.limits.headers(time.monotonic()))
            await send(message)

        try:
            if (refusal := self._find_refusal(scope, headers, caller)) is not None:
                await send_error(send_named, refusal, scope["path"])
            else:
                await self._app(scope, receive, send_named)
        finally:
            seconds = time.perf_counter() - start
            self._record(scope, request_id, status, seconds)
            if self._tracing is not None and record is not None:
                route = getattr(scope.get("route"), "path", None)
                self._tracing.finish(route, headers, record, fields, status=status, seconds=seconds)
            caller.settle()
            if self._records is not None:
                if caller.owner is not None and self._role is Role.USER:
                    self._records.accounts.add(caller.owner.name, caller.usage)
                if self._records.audit is not None:
                    self._records.audit.write(_audit_line(scope, caller, request_id, status, seconds))

    def _find_refusal(self, scope: Scope, headers: Headers, caller: Caller) -> ApiError | None:
        checks_host = self._checks_host or (self._keys.has_short and scope.get("client") is not None)
        if checks_host and _host_of(headers.get("host", "")) not in LOOPBACK_HOSTS:
            message = (
                "without API keys, and with short ones, only requests to localhost are answered: set access.keys_file"
            )
            return ApiError(403, message)
        is_open = scope["path"] in self._open_paths and not scope.get("query_string")
        if len(self._keys) == 0 or is_open:
            return None
        owner = caller.owner = self._keys.find(_key_of(headers))
        if owner is None:
            message = "the API key is wrong or missing: send it as Authorization: Bearer KEY"
            return ApiError(401, message, headers={"WWW-Authenticate": "Bearer"})
        role = Role.METRICS if scope["path"] == "/metrics" else self._role
        if role not in owner.roles:
            return ApiError(403, f"the API key {owner.name} has not the role {role}, which this needs")
        caller.limits = self._limits.of(owner, time.monotonic())
        if caller.limits is not None and scope["method"] == "POST":
            try:
                caller.limits.take_request(time.monotonic())
            except ApiError as error:
                self._metrics.count_rejection("key")
                return error
        return None

    def _record(self, scope: Scope, request_id: str, status: int, seconds: float) -> None:
        handler = getattr(scope.get("route"), "path", None)
        self._metrics.count_request(handler, scope["method"], status, seconds)
        logger.info("%s %s %d %.3f s %s", scope["method"][:16], handler or "-", status, seconds, request_id)


def _audit_line(scope: Scope, caller: Caller, request_id: str, status: int, seconds: float) -> dict[str, Any]:
    client = scope.get("client")
    line: dict[str, Any] = {
        "request_id": request_id,
        "key": None if caller.owner is None else caller.owner.name,
        "client": None if client is None else client[0],
        "method": scope["method"][:16],
        "route": getattr(scope.get("route"), "path", None),
        "status": status,
        "duration_s": round(seconds, 4),
        "num_prompt_tokens": caller.usage.num_prompt_tokens,
        "num_cached_tokens": caller.usage.num_cached_tokens,
        "num_generated_tokens": caller.usage.num_generated_tokens,
        "refused": caller.refused,
    }
    if caller.keeps_body:
        line["body"] = caller.body.decode("utf-8", "replace")
    return line


async def send_error(send: Send, error: ApiError, path: str) -> None:
    """Answer with an error, before any route."""
    body: Any = orjson.dumps(error_body(path, error) if path in MESSAGES_PATHS else error.content)
    headers = {"Content-Type": "application/json", "Content-Length": str(len(body)), **error.headers}
    raw = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": error.status, "headers": raw})
    await send({"type": "http.response.body", "body": body})


def _request_id(headers: Headers) -> str:
    given = headers.get("x-request-id", "")
    return given if _REQUEST_ID.fullmatch(given) else secrets.token_hex(16)


def _key_of(headers: Headers) -> str:
    scheme, _, key = headers.get("authorization", "").partition(" ")
    return key.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")


def _host_of(value: str) -> str:
    """The name in a Host header, without its port."""
    if value.startswith("["):
        return value[1:].partition("]")[0]
    return value.partition(":")[0]
