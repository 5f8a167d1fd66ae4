"""One request, as it went. Times are seconds from the beginning of the run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import pairwise


class TokenSource(StrEnum):
    """Where a number of output tokens is from, the best first."""

    USAGE = "usage"
    TOKENIZER = "tokenizer"
    CHUNKS = "chunks"
    UNKNOWN = "unknown"
    """Not streamed, no usage, no tokenizer: 0 tokens are counted."""


@dataclass(frozen=True)
class Failure:
    """Why a request failed."""

    kind: str
    """One of a few: ``status 503``, ``timed out``, …"""
    message: str


@dataclass(frozen=True, kw_only=True)
class RequestRecord:
    """What was asked, when what came, and how it ended."""

    conversation: int
    turn: int = 0
    due_s: float
    """When it was to be sent."""
    sent_s: float
    ended_s: float
    """When the answer was over, or the failure known."""
    chunk_times_s: Sequence[float] = ()
    """When each piece of a streamed answer that has tokens arrived."""
    num_input_tokens: int | None = None
    """By usage, or None."""
    num_cached_tokens: int | None = None
    """Of the input, that the server did not compute; None where it does not say."""
    num_output_tokens: int = 0
    token_source: TokenSource = TokenSource.UNKNOWN
    finish_reason: str | None = None
    failure: Failure | None = None

    @property
    def latency_s(self) -> float:
        """From sending to the end of the answer."""
        return self.ended_s - self.sent_s

    @property
    def ttft_s(self) -> float | None:
        """Time to first token; None where nothing was streamed."""
        return self.chunk_times_s[0] - self.sent_s if self.chunk_times_s else None

    @property
    def tpot_s(self) -> float | None:
        """Time per output token after the first: from first to last piece, by one token fewer than there are."""
        if not self.chunk_times_s or self.num_output_tokens < 2:
            return None
        return (self.chunk_times_s[-1] - self.chunk_times_s[0]) / (self.num_output_tokens - 1)

    @property
    def itl_s(self) -> list[float]:
        """Inter-token latencies: gaps between pieces, which are tokens where each piece has one."""
        return [later - earlier for earlier, later in pairwise(self.chunk_times_s)]
