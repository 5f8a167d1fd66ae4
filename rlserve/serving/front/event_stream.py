"""Answers that end when their reader does: server-sent events, and whole answers that are still being made."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Coroutine
from contextlib import aclosing
from typing import Any, TypeVar

import orjson
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

T = TypeVar("T")
logger = logging.getLogger(__name__)

DONE = b"data: [DONE]\n\n"
_KEEP_ALIVE_S = 15.0
_KEEP_ALIVE = b": keep-alive\n\n"
CLIENT_CLOSED_REQUEST = 499
"""Nobody reads it; it is what logs and metrics show."""


def event(content: Any) -> bytes:
    """One server-sent event."""
    return b"data: " + orjson.dumps(content) + b"\n\n"


async def typed_events(batches: AsyncGenerator[list[dict[str, Any]]]) -> AsyncGenerator[bytes]:
    """Events that are named by their ``type``, too."""
    async with aclosing(batches):
        async for contents in batches:
            if contents:
                yield b"".join(f"event: {content['type']}\n".encode() + event(content) for content in contents)


class EventStream(Response):
    """Sends events as they come. When the client leaves, or takes nothing for a while, ``events`` is closed at once.

    A slow reader makes nothing pile up: the next event is asked for when the one before is taken. Where nothing comes
    for a while, a comment keeps proxies from closing the connection.
    """

    media_type = "text/event-stream"

    def __init__(self, events: AsyncGenerator[bytes], stalled_reader_s: float) -> None:
        super().__init__(headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._events = events
        self._stalled_reader_s = stalled_reader_s
        self._is_sending = False
        self._changed_s = time.monotonic()
        """When sending began or ended last."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        async with aclosing(self._events):
            sending = asyncio.create_task(self._send_all(send))
            leaving = asyncio.create_task(_disconnected(receive))
            try:
                await self._watch(sending, leaving, send)
            finally:
                await _cancel(sending, leaving)

    async def _send_all(self, send: Send) -> None:
        async for content in self._events:
            await self._send(send, content)
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _send(self, send: Send, content: bytes) -> None:
        self._is_sending, self._changed_s = True, time.monotonic()
        await send({"type": "http.response.body", "body": content, "more_body": True})
        self._is_sending, self._changed_s = False, time.monotonic()

    async def _watch(self, sending: asyncio.Task[None], leaving: asyncio.Task[None], send: Send) -> None:
        """Until all is sent, or nobody takes it. By looking now and then: a time limit on each event costs more than
        the event."""
        interval_s = min(self._stalled_reader_s, _KEEP_ALIVE_S) / 4
        while True:
            await asyncio.wait([sending, leaving], timeout=interval_s, return_when=asyncio.FIRST_COMPLETED)
            if sending.done():
                return sending.result()
            if leaving.done():
                return None
            quiet_s = time.monotonic() - self._changed_s
            if self._is_sending and quiet_s > self._stalled_reader_s:
                logger.warning("a client took nothing of its stream for %g s and is given up", self._stalled_reader_s)
                return None
            if not self._is_sending and quiet_s > _KEEP_ALIVE_S:
                async with asyncio.timeout(self._stalled_reader_s):
                    await self._send(send, _KEEP_ALIVE)


async def until_disconnect(receive: Receive, work: Coroutine[Any, Any, T]) -> T | None:
    """Do some work while the client is there; None where it left before the end."""
    working = asyncio.create_task(work)
    leaving = asyncio.create_task(_disconnected(receive))
    try:
        await asyncio.wait([working, leaving], return_when=asyncio.FIRST_COMPLETED)
        return working.result() if working.done() else None
    finally:
        await _cancel(working, leaving)


async def _cancel(*tasks: asyncio.Task[Any]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
