"""What a request's span tells of its generation, written down on the way. There is none while nobody traces."""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass, field

from rlserve.engine.requests.request import Request, RequestOutput


@dataclass(kw_only=True)
class GenerationRecord:
    """Of one request over HTTP."""

    requests: tuple[Request, ...] = ()
    """That the engines were given; empty where it came to none."""
    outputs: list[RequestOutput] = field(default_factory=list)
    """Of those that ended."""
    time_to_first_token_s: float | None = None
    """From the arrival over HTTP, of a stream."""
    num_failovers: int = 0


GENERATION_RECORD: ContextVar[GenerationRecord | None] = ContextVar("GENERATION_RECORD", default=None)
"""Of the request that the current task, or one that it began, works for."""
