"""Latencies of the engine as histograms, and its numbers under the names that vLLM's dashboards know.

Plain data: whoever serves them to a collector formats them. Times come from a clock that the engine is given.

Legend: B tokens of a step.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from rlserve.engine.stats.engine_stats import EngineStats

# The bounds of vLLM 0.33, so that histograms of both can be added and compared.
FIRST_TOKEN_BOUNDS_S = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0),
    *(2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0, 160.0, 640.0, 2560.0),
)
INTER_TOKEN_BOUNDS_S = (
    *(0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0),
    *(2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0),
)
REQUEST_BOUNDS_S = (
    *(0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0),
    *(120.0, 240.0, 480.0, 960.0, 1920.0, 7680.0),
)

NO_TIME = -1.0
"""The time of a token that is not there."""


@dataclass(frozen=True, kw_only=True)
class Histogram:
    """How often a time fell where, since the engine was made."""

    bounds_s: tuple[float, ...]
    """Upper bounds, each inclusive, in rising order; a last bucket without a bound follows."""
    counts: tuple[int, ...]
    """One per bucket, not cumulative; one more than bounds."""
    sum_s: float

    @property
    def count(self) -> int:
        """All observations."""
        return sum(self.counts)


class HistogramCounter:
    """A histogram while it grows."""

    def __init__(self, bounds_s: tuple[float, ...]) -> None:
        self._bounds_s = bounds_s
        self._counts = [0] * (len(bounds_s) + 1)
        self._sum_s = 0.0

    def observe(self, time_s: float, times: int = 1) -> None:
        """Count a time, or the same time several times over."""
        self._counts[bisect_left(self._bounds_s, time_s)] += times
        self._sum_s += time_s * times

    def snapshot(self) -> Histogram:
        """The histogram of now."""
        return Histogram(bounds_s=self._bounds_s, counts=tuple(self._counts), sum_s=self._sum_s)


class Latencies:
    """The times that users of an engine feel."""

    def __init__(self) -> None:
        self.time_to_first_token = HistogramCounter(FIRST_TOKEN_BOUNDS_S)
        self.inter_token_latency = HistogramCounter(INTER_TOKEN_BOUNDS_S)
        self.queue_time = HistogramCounter(REQUEST_BOUNDS_S)
        self.e2e_latency = HistogramCounter(REQUEST_BOUNDS_S)

    def observe_tokens(self, now_s: float, last_token_s_B: NDArray[np.float64]) -> None:
        """Count the times since the token before, of samples that got a token now. Nearly always all got the one
        before in the same step, which makes one observation of them."""
        first_s = float(last_token_s_B[0])
        if (last_token_s_B == first_s).all():
            times_s, counts = [first_s], [len(last_token_s_B)]
        else:
            unlike_s, numbers = np.unique(last_token_s_B, return_counts=True)
            times_s, counts = unlike_s.tolist(), numbers.tolist()
        for last_s, count in zip(times_s, counts, strict=True):
            if last_s != NO_TIME:
                self.inter_token_latency.observe(now_s - last_s, count)


VLLM_GAUGES = frozenset({"vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc"})
"""What goes down too; the other numbers only grow."""


def vllm_metrics(stats: EngineStats) -> dict[str, float | Histogram]:
    """The engine's numbers by vLLM's names; those that end in ``_seconds`` are histograms."""
    return {
        "vllm:num_requests_running": stats.num_running,
        "vllm:num_requests_waiting": stats.num_waiting,
        "vllm:kv_cache_usage_perc": stats.kv_cache_usage,
        "vllm:prefix_cache_queries": stats.prefix_queries,
        "vllm:prefix_cache_hits": stats.prefix_hits,
        "vllm:num_preemptions": stats.num_preemptions,
        "vllm:prompt_tokens": stats.num_prompt_tokens,
        "vllm:generation_tokens": stats.num_generated_tokens,
        "vllm:time_to_first_token_seconds": stats.time_to_first_token,
        "vllm:inter_token_latency_seconds": stats.inter_token_latency,
        "vllm:request_queue_time_seconds": stats.queue_time,
        "vllm:e2e_request_latency_seconds": stats.e2e_latency,
    }
