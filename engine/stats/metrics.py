"""Latencies of the engine as histograms, and its numbers under the names that vLLM's dashboards know.

Plain data: whoever serves them to a collector formats them. Times come from a clock that the engine is given. What is
measured of a sample once it has ended is in ``ended_samples.py``.

Legend: B tokens of a step.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from rlserve.engine.config import EngineConfig

if TYPE_CHECKING:
    from rlserve.engine.stats.engine_stats import AdapterUse, EngineStats

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

STEP_TOKENS_BOUNDS = (1.0, *(8.0 * 2**exponent for exponent in range(12)))

NO_TIME = -1.0
"""The time of a token that is not there."""


@dataclass(frozen=True, kw_only=True)
class Histogram:
    """How often a value fell where, since the engine was made. Times are in seconds."""

    bounds: tuple[float, ...]
    """Upper bounds, each inclusive, in rising order; a last bucket without a bound follows."""
    counts: tuple[int, ...]
    """One per bucket, not cumulative; one more than bounds."""
    sum: float

    @property
    def count(self) -> int:
        """All observations."""
        return sum(self.counts)


class HistogramCounter:
    """A histogram while it grows."""

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

        self._snapshot: Histogram | None = None
        """Since the last observation: engines are asked for all of theirs after each step."""

    def observe(self, value: float, times: int = 1) -> None:
        """Count a value, or the same value several times over."""
        self._counts[bisect_left(self._bounds, value)] += times
        self._sum += value * times
        self._snapshot = None

    def snapshot(self) -> Histogram:
        """The histogram of now."""
        if self._snapshot is None:
            self._snapshot = Histogram(bounds=self._bounds, counts=tuple(self._counts), sum=self._sum)
        return self._snapshot


@dataclass(frozen=True, kw_only=True)
class Labelled:
    """Numbers of one name that differ by labels beside those of the engine."""

    labels: tuple[str, ...]
    series: tuple[tuple[tuple[str, ...], float], ...]
    """The labels' values with the number, each combination once."""


Value = float | Histogram | Labelled
"""What there is under one name."""


class Latencies:
    """The times that users of an engine feel."""

    def __init__(self) -> None:
        self.time_to_first_token = HistogramCounter(FIRST_TOKEN_BOUNDS_S)
        self.inter_token_latency = HistogramCounter(INTER_TOKEN_BOUNDS_S)
        self.queue_time = HistogramCounter(REQUEST_BOUNDS_S)
        self.e2e_latency = HistogramCounter(REQUEST_BOUNDS_S)
        self.step_tokens = HistogramCounter(STEP_TOKENS_BOUNDS)

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


LORA_INFO = "vllm:lora_requests_info"
"""Who has which adapter; the one name without the labels of an engine."""
VLLM_GAUGES = frozenset(
    {
        "vllm:num_requests_running",
        "vllm:num_requests_waiting",
        "vllm:num_requests_waiting_by_reason",
        "vllm:kv_cache_usage_perc",
        "vllm:cache_config_info",
        LORA_INFO,
    }
)
"""What goes down too, or never changes; the other numbers only grow."""


def vllm_metrics(stats: EngineStats) -> dict[str, Value]:
    """The engine's numbers by vLLM's names, which ``rlserve/tracking/vllm_names.py`` explains."""
    ended = stats.ended_samples
    return {
        "vllm:num_requests_running": stats.num_running,
        "vllm:num_requests_waiting": stats.num_waiting,
        "vllm:num_requests_waiting_by_reason": _by(
            "reason", capacity=stats.num_waiting - stats.num_compiling, deferred=stats.num_compiling
        ),
        "vllm:kv_cache_usage_perc": stats.kv_cache_usage,
        "vllm:cache_config_info": Labelled(
            labels=tuple(stats.cache_config), series=((tuple(stats.cache_config.values()), 1.0),)
        ),
        LORA_INFO: Labelled(
            labels=("max_lora", "waiting_lora_adapters", "running_lora_adapters"),
            series=((_lora_labels(stats.adapters), 1.0),),
        ),
        "vllm:prefix_cache_queries": stats.prefix_queries,
        "vllm:prefix_cache_hits": stats.prefix_hits,
        "vllm:num_preemptions": stats.num_preemptions,
        "vllm:corrupted_requests": stats.num_corrupted_requests,
        "vllm:prompt_tokens": stats.num_prompt_tokens,
        "vllm:prompt_tokens_by_source": _by(
            "source",
            local_compute=stats.num_started_prompt_tokens - stats.num_cached_prompt_tokens,
            local_cache_hit=stats.num_cached_prompt_tokens,
        ),
        "vllm:prompt_tokens_cached": stats.num_cached_prompt_tokens,
        "vllm:prompt_tokens_cached_by_source": _by("source", device=stats.prefix_hits),
        "vllm:generation_tokens": stats.num_generated_tokens,
        "vllm:iteration_tokens_total": stats.step_tokens,
        "vllm:time_to_first_token_seconds": stats.time_to_first_token,
        "vllm:inter_token_latency_seconds": stats.inter_token_latency,
        "vllm:request_queue_time_seconds": stats.queue_time,
        "vllm:e2e_request_latency_seconds": stats.e2e_latency,
        "vllm:request_prompt_tokens": ended.prompt_tokens,
        "vllm:request_generation_tokens": ended.generated_tokens,
        "vllm:request_max_num_generation_tokens": ended.longest_generated_tokens,
        "vllm:request_params_n": ended.samples_of_request,
        "vllm:request_params_max_tokens": ended.max_tokens,
        "vllm:request_prefill_kv_computed_tokens": ended.prefilled_tokens,
        "vllm:request_num_preemptions": ended.preemptions,
        "vllm:request_prefill_time_seconds": ended.prefill_time,
        "vllm:request_decode_time_seconds": ended.decode_time,
        "vllm:request_inference_time_seconds": ended.inference_time,
        "vllm:request_time_per_output_token_seconds": ended.time_per_output_token,
    }


def cache_config(config: EngineConfig, num_blocks: int, max_model_len: int) -> dict[str, str]:
    """How the KV cache is set up, by the names that vLLM has for it.

    Args:
        num_blocks: that there are, whatever the configuration asks for.
        max_model_len: tokens of the longest sample.
    """
    return {
        "block_size": str(config.block_size),
        "cache_dtype": config.kv_cache_dtype,
        "enable_prefix_caching": str(config.enable_prefix_caching),
        "gpu_memory_utilization": str(config.gpu_memory_fraction),
        "kv_cache_max_concurrency": str(num_blocks // -(-max_model_len // config.block_size)),
        "kv_cache_size_tokens": str(num_blocks * config.block_size),
        "num_gpu_blocks": str(num_blocks),
    }


def _lora_labels(adapters: AdapterUse) -> tuple[str, ...]:
    return (str(adapters.num_loaded), ",".join(adapters.waiting), ",".join(adapters.running))


def _by(label: str, **values: float) -> Labelled:
    return Labelled(labels=(label,), series=tuple(((name,), value) for name, value in values.items()))
