"""Server-sent events from bytes, as they come (https://html.spec.whatwg.org/multipage/server-sent-events.html)."""

from __future__ import annotations

from rlserve.bench.client.failures import MALFORMED, FailedRequestError

MAX_EVENT_BYTES = 8 << 20
"""A server that never ends an event must not fill this machine's memory."""


class EventStream:
    """Takes bytes in any pieces and gives the data of each event that is complete."""

    def __init__(self) -> None:
        self._rest = bytearray()
        self._data: list[str] = []
        self._num_bytes = 0

    def feed(self, piece: bytes) -> list[str]:
        """Data of the events that end in this piece; comments and fields other than ``data`` are passed over.

        Raises:
            FailedRequestError: what came is no UTF-8, or an event is larger than any that makes sense.
        """
        self._rest += piece
        *lines, rest = self._rest.replace(b"\r\n", b"\n").split(b"\n")
        self._rest = bytearray(rest)
        events = []
        for line in lines:
            if line.startswith(b"data:"):
                self._num_bytes += len(line)
                self._data.append(_text(line.removeprefix(b"data:").removeprefix(b" ")))
            elif not line and self._data:
                events.append("\n".join(self._data))
                self._data, self._num_bytes = [], 0
        if self._num_bytes + len(self._rest) > MAX_EVENT_BYTES:
            raise FailedRequestError(MALFORMED, f"an event of more than {MAX_EVENT_BYTES >> 20} MiB")
        return events


def _text(line: bytearray | bytes) -> str:
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise FailedRequestError(MALFORMED, f"an event is no UTF-8: {error}") from error
