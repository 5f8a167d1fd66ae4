"""Kinds of failures of requests. A status that is no 200 is a kind of its own: ``status 503``."""

from __future__ import annotations

from rlserve.bench.results.record import Failure
from rlserve.errors import RlserveError

NOT_CONNECTED = "not connected"
"""Refused, unreachable, no such host, TLS."""
DISCONNECTED = "disconnected"
"""The connection broke before the answer was complete."""
CUT_OFF = "cut off"
"""The stream ended in order, without a reason and without ``[DONE]``."""
TIMED_OUT = "timed out"
MALFORMED = "malformed"
"""What came is not what the API says."""
SERVER_ERROR = "error in the stream"
"""An error that the server sent after the stream had begun."""
NO_TOKENS = "no tokens"
INTERRUPTED = "interrupted"
"""By the user of the client."""
_MAX_MESSAGE_CHARACTERS = 300


class FailedRequestError(RlserveError, RuntimeError):
    """A request failed: counted by its kind, and the load goes on."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(kind, message)
        self.failure = Failure(kind, message[:_MAX_MESSAGE_CHARACTERS])

    def __str__(self) -> str:
        return f"{self.failure.kind}: {self.failure.message}"
