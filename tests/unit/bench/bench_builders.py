"""Records of requests, from the times that a test speaks of."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

from rlserve.bench.results.record import Failure, RequestRecord, TokenSource


def make_record(
    *,
    sent_s: float = 0.0,
    ttft_s: float = 0.1,
    gaps_s: Sequence[float] = (),
    rest_s: float = 0.0,
    streamed: bool = True,
    num_input_tokens: int | None = None,
    num_output_tokens: int | None = None,
    failure: Failure | None = None,
) -> RequestRecord:
    """One token a piece: the first after ``ttft_s``, others after ``gaps_s``, and the end ``rest_s`` after the last."""
    times_s = tuple(accumulate(gaps_s, initial=sent_s + ttft_s)) if streamed and failure is None else ()
    return RequestRecord(
        conversation=0,
        due_s=sent_s,
        sent_s=sent_s,
        ended_s=(times_s[-1] if times_s else sent_s) + rest_s,
        chunk_times_s=times_s,
        num_input_tokens=num_input_tokens,
        num_output_tokens=len(times_s) if num_output_tokens is None else num_output_tokens,
        token_source=TokenSource.USAGE,
        finish_reason=None if failure else "length",
        failure=failure,
    )
