"""Answers that end when their reader does: server-sent events, and whole answers that are still being made."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Coroutine
from contextlib import aclosing
from typing import Any, TypeVar

import orjson
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

T = TypeVar("T")
logger = logging.getLogger(__name__)

DONE = b"data: [DONE]\n\n"
CLIENT_CLOSED_REQUEST = 499
"""Nobody reads it; it is what logs and metrics show."""


def event(content: Any) -> bytes:
    """One server-sent event."""
    return b"data: " + orjson.dumps(content) + b"\n\n"


class EventStream(Response):
    """Sends events as they come. When the client leaves, or takes nothing for a while, ``events`` is closed at once.

    A slow reader makes nothing pile up: the next event is asked for when the one before is taken.
    """

    media_type = "text/event-stream"

    def __init__(self, events: AsyncGenerator[bytes], stalled_reader_s: float) -> None:
        super().__init__(headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._events = events
        self._stalled_reader_s = stalled_reader_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with aclosing(self._events):
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            await until_disconnect(receive, self._send_all(send))

    async def _send_all(self, send: Send) -> None:
        try:
            async for content in self._events:
                async with asyncio.timeout(self._stalled_reader_s):
                    await send({"type": "http.response.body", "body": content, "more_body": True})
        except TimeoutError:
            logger.warning("a client took nothing of its stream for %g s and is given up", self._stalled_reader_s)
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def until_disconnect(receive: Receive, work: Coroutine[Any, Any, T]) -> T | None:
    """Do some work while the client is there; None where it left before the end."""
    working = asyncio.create_task(work)
    leaving = asyncio.create_task(_disconnected(receive))
    try:
        await asyncio.wait([working, leaving], return_when=asyncio.FIRST_COMPLETED)
        return working.result() if working.done() else None
    finally:
        for task in (working, leaving):
            task.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
