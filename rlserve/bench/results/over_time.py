"""Rates over the time of a run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from rlserve.bench.results.record import RequestRecord


@dataclass(frozen=True, kw_only=True)
class OverTime:
    """Bins of equal width; ``times_s`` are their middles."""

    times_s: tuple[float, ...]
    output_tokens_per_s: tuple[float, ...]
    requests_in_flight: tuple[float, ...]
    """Mean over the bin."""


def over_time(records: Sequence[RequestRecord], duration_s: float, *, num_bins: int) -> OverTime:
    """What arrived and what was in flight, in ``num_bins`` parts of ``duration_s``.

    An answer's tokens are spread evenly over its pieces, or stand at its end if it was not streamed.
    """
    edges = np.linspace(0.0, duration_s, num_bins + 1)
    width_s = duration_s / num_bins
    moments, weights = np.array(list(_tokens(records)), dtype=np.float64).reshape(-1, 2).T
    tokens, _ = np.histogram(moments, bins=edges, weights=weights)
    in_flight = np.zeros(num_bins)
    for record in records:
        in_flight += np.clip(np.minimum(edges[1:], record.ended_s) - np.maximum(edges[:-1], record.sent_s), 0, None)
    return OverTime(
        times_s=tuple(((edges[1:] + edges[:-1]) / 2).tolist()),
        output_tokens_per_s=tuple((tokens / width_s).tolist()),
        requests_in_flight=tuple((in_flight / width_s).tolist()),
    )


def _tokens(records: Sequence[RequestRecord]) -> Iterator[tuple[float, float]]:
    for record in records:
        times_s = record.chunk_times_s or (record.ended_s,)
        for time_s in times_s:
            yield time_s, record.num_output_tokens / len(times_s)
