"""The numbers of one run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rlserve.bench.results.client_limit import ClientLoad
from rlserve.bench.results.goodput import Goodput, goodput
from rlserve.bench.results.record import RequestRecord
from rlserve.bench.results.statistics import Distribution, distribution


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """All that a run has seen."""

    load: str
    """``concurrency 16``, ``rate 4/s``, …"""
    level: float
    """Where it stands on the axis of a sweep."""
    records: tuple[RequestRecord, ...]
    duration_s: float
    """From the beginning to the end of the last request."""
    client: ClientLoad
    is_interrupted: bool = False
    """By the user, before it was over."""


@dataclass(frozen=True, kw_only=True)
class FailureCount:
    """Failures of a kind."""

    number: int
    example: str


@dataclass(frozen=True, kw_only=True)
class Summary:
    """Latencies are of requests that were answered to the end; tokens and rates are of all."""

    load: str
    duration_s: float
    num_answered: int
    num_failed: int
    failures: Mapping[str, FailureCount]
    requests_per_s: float
    """Answered."""
    num_input_tokens: int
    """Of requests whose usage says it."""
    num_cached_tokens: int
    num_output_tokens: int
    input_tokens_per_s: float
    output_tokens_per_s: float
    tokens_per_chunk: float | None
    """Of streamed answers: above 1, a gap between pieces is more than one between tokens."""
    token_sources: Mapping[str, int]
    """How many answers' output tokens were counted how."""
    finish_reasons: Mapping[str, int]
    mean_in_flight: float
    ttft_s: Distribution | None
    tpot_s: Distribution | None
    itl_s: Distribution | None
    latency_s: Distribution | None
    goodput: Goodput | None
    client: ClientLoad
    warnings: tuple[str, ...]


def summarise(run: Measurement, deadlines_ms: Mapping[str, float]) -> Summary:
    """Of one run."""
    answered = [record for record in run.records if record.failure is None]
    per_s = 1 / run.duration_s if run.duration_s > 0 else 0.0
    num_input_tokens = sum(record.num_input_tokens or 0 for record in run.records)
    num_output_tokens = sum(record.num_output_tokens for record in run.records)
    streamed = [record for record in answered if record.chunk_times_s]
    num_chunks = sum(len(record.chunk_times_s) for record in streamed)
    itl = distribution(gap_s for record in answered for gap_s in record.itl_s)
    return Summary(
        load=run.load,
        duration_s=run.duration_s,
        num_answered=len(answered),
        num_failed=len(run.records) - len(answered),
        failures=_failures(run.records),
        requests_per_s=len(answered) * per_s,
        num_input_tokens=num_input_tokens,
        num_cached_tokens=sum(record.num_cached_tokens or 0 for record in run.records),
        num_output_tokens=num_output_tokens,
        input_tokens_per_s=num_input_tokens * per_s,
        output_tokens_per_s=num_output_tokens * per_s,
        tokens_per_chunk=sum(record.num_output_tokens for record in streamed) / num_chunks if num_chunks else None,
        token_sources=dict(Counter(str(record.token_source) for record in answered)),
        finish_reasons=dict(Counter(record.finish_reason or "none" for record in answered)),
        mean_in_flight=sum(record.latency_s for record in run.records) * per_s,
        ttft_s=distribution(record.ttft_s for record in answered),
        tpot_s=distribution(record.tpot_s for record in answered),
        itl_s=itl,
        latency_s=distribution(record.latency_s for record in answered),
        goodput=goodput(run.records, deadlines_ms, run.duration_s) if deadlines_ms else None,
        client=run.client,
        warnings=tuple(run.client.warnings(itl)),
    )


def _failures(records: Sequence[RequestRecord]) -> dict[str, FailureCount]:
    """By kind, the most frequent first."""
    failures = [record.failure for record in records if record.failure is not None]
    counts = Counter(failure.kind for failure in failures)
    first = {failure.kind: failure.message for failure in reversed(failures)}
    return {kind: FailureCount(number=number, example=first[kind]) for kind, number in counts.most_common()}
