"""What a request has gained since it was last looked at. Plain data, no torch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from rlserve.engine.requests.generated_tokens import GeneratedTokens
from rlserve.engine.requests.request import FinishReason, RequestOutput, SampleOutput, TopLogProbs


@dataclass(frozen=True, kw_only=True)
class SampleDelta:
    """The new tokens of one sample, one or more, or its end, or both."""

    index: int
    start: int
    """Tokens that the sample had before."""
    tokens: GeneratedTokens
    """The new ones."""
    top_log_probs: tuple[TopLogProbs, ...] = ()
    """Of the new tokens; empty unless ``num_top_log_probs`` or ``log_prob_token_ids`` asks for it."""
    kept_support: tuple[bytes, ...] = ()
    """Of the new tokens; empty unless asked for."""
    finish_reason: FinishReason | None = None
    """None while the sample goes on."""
    stop_reason: int | str | None = None
    """The token id or the string that ended the sample, if one did."""


@dataclass(frozen=True, kw_only=True)
class RequestDelta:
    """What is new of the samples of one request, in order of their index; samples without news are left out."""

    request_id: str
    samples: tuple[SampleDelta, ...]
    output: RequestOutput | None = None
    """The whole answer, with the last delta of a request; None before."""


def rest_of(sample: SampleOutput, start: int) -> SampleDelta:
    """What a sample that has ended has beyond its first ``start`` tokens."""
    return SampleDelta(
        index=sample.index,
        start=start,
        tokens=sample.tokens.after(start),
        top_log_probs=sample.top_log_probs[start:],
        kept_support=sample.kept_support[start:],
        finish_reason=sample.finish_reason,
        stop_reason=sample.stop_reason,
    )


def each_token(sample: SampleOutput) -> Iterator[SampleDelta]:
    """A sample that has ended, one token after the other; the last has its end, which may be all that there is."""
    last = max(len(sample.tokens) - 1, 0)
    for start in range(last):
        yield SampleDelta(
            index=sample.index,
            start=start,
            tokens=sample.tokens.between(start, start + 1),
            top_log_probs=sample.top_log_probs[start : start + 1],
            kept_support=sample.kept_support[start : start + 1],
        )
    yield rest_of(sample, last)
