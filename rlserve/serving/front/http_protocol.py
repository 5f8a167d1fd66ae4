"""HTTP/1.1 by httptools, whose parser alone would keep headers of any size, and wait for them for ever."""

from __future__ import annotations

import asyncio
import logging

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

logger = logging.getLogger(__name__)


class BoundedHttpProtocol(HttpToolsProtocol):
    """Closes a connection whose request has more than :attr:`max_head_bytes` beside its body: first line, headers,
    trailers, and what marks off the parts of a body; or whose first line and headers take longer than
    :attr:`head_timeout_s`, however they come."""

    max_head_bytes: int
    head_timeout_s: float
    _num_head_bytes = 0
    _has_head = False
    _deadline: asyncio.TimerHandle | None = None
    """While a head is awaited: from the connection on, or from the first byte after a request."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        """The first head is awaited."""
        super().connection_made(transport)
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing is awaited any more."""
        self._forget_deadline()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Bytes of the client; those of a body are taken off again in :meth:`on_body`."""
        self._num_head_bytes += len(data)
        if not self._has_head and self._deadline is None:
            self._await_head()
        super().data_received(data)
        if self._num_head_bytes > self.max_head_bytes:
            logger.warning("a connection is closed: its request has more than %d bytes of headers", self.max_head_bytes)
            self.transport.close()

    def on_headers_complete(self) -> None:
        """The head is there."""
        self._has_head = True
        self._forget_deadline()
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """A part of a body."""
        self._num_head_bytes -= len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        """The end of a request."""
        self._num_head_bytes, self._has_head = 0, False
        super().on_message_complete()

    def _await_head(self) -> None:
        self._deadline = self.loop.call_later(self.head_timeout_s, self._give_up)

    def _forget_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _give_up(self) -> None:
        logger.warning("a connection is closed: its headers did not arrive within %g s", self.head_timeout_s)
        self._deadline = None
        self.transport.abort()


def bounded_protocol(max_head_bytes: int, head_timeout_s: float) -> type[BoundedHttpProtocol]:
    """The protocol with its bounds."""
    bounds = {"max_head_bytes": max_head_bytes, "head_timeout_s": head_timeout_s}
    return type("BoundedHttpProtocol", (BoundedHttpProtocol,), bounds)
