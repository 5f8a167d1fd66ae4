"""HTTP/1.1 by httptools, whose parser alone would keep headers of any size."""

from __future__ import annotations

import logging

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

logger = logging.getLogger(__name__)


class BoundedHttpProtocol(HttpToolsProtocol):
    """Closes a connection whose request has more than :attr:`max_head_bytes` beside its body: first line, headers,
    trailers, and what marks off the parts of a body."""

    max_head_bytes: int
    _num_head_bytes = 0

    def data_received(self, data: bytes) -> None:
        """Bytes of the client; those of a body are taken off again in :meth:`on_body`."""
        self._num_head_bytes += len(data)
        super().data_received(data)
        if self._num_head_bytes > self.max_head_bytes:
            logger.warning("a connection is closed: its request has more than %d bytes of headers", self.max_head_bytes)
            self.transport.close()

    def on_body(self, body: bytes) -> None:
        """A part of a body."""
        self._num_head_bytes -= len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        """The end of a request."""
        self._num_head_bytes = 0
        super().on_message_complete()


def bounded_protocol(max_head_bytes: int) -> type[BoundedHttpProtocol]:
    """The protocol with its bound."""
    return type("BoundedHttpProtocol", (BoundedHttpProtocol,), {"max_head_bytes": max_head_bytes})
