"""All metrics of vLLM 0.33's engine by name: what rlserve exports of them, and why it has none of the others.

``docs/metrics.md`` shows this table. A test compares it with what engines and servers export, and with vLLM's own
source where it is at hand.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["gauge", "counter", "histogram"]


@dataclass(frozen=True, kw_only=True)
class VllmMetric:
    """One of vLLM's metrics, by the name that its source gives it: of counters, ``_total`` follows."""

    kind: Kind
    labels: tuple[str, ...] = ("model_name", "engine")
    meaning: str = ""
    """Here; empty where there is none."""
    missing: str = ""
    """Why there is none; empty where there is."""
    server_only: bool = False
    """Measured by a server, not by an engine: the endpoint of a run without one has none."""


_OF_ENGINE = ("model_name", "engine")


def _has(kind: Kind, meaning: str, *labels: str) -> VllmMetric:
    return VllmMetric(kind=kind, meaning=meaning, labels=(*_OF_ENGINE, *labels))


def _lacks(kind: Kind, missing: str, *labels: str) -> VllmMetric:
    return VllmMetric(kind=kind, missing=missing, labels=(*_OF_ENGINE, *labels))


_NO_BLOCK_TIMES = "off by default there; blocks have no times here"
_NO_CONNECTOR = "KV blocks are not shared between engines"
_NO_IMAGES = "models of text alone are served"

VLLM_METRICS: dict[str, VllmMetric] = {
    "vllm:num_requests_running": _has("gauge", "samples that have KV blocks"),
    "vllm:num_requests_waiting": _has("gauge", "samples that have none yet, or lost them"),
    "vllm:num_requests_waiting_by_reason": _has(
        "gauge", "the same: `capacity`, or `deferred` while their grammar is compiled", "reason"
    ),
    "vllm:num_requests_kv_fetch_by_stage": _lacks("gauge", _NO_CONNECTOR, "stage"),
    "vllm:engine_sleep_state": _lacks(
        "gauge", "a server's engines keep their memory; of `pool.placement=colocated`, see `pool/` above", "sleep_state"
    ),
    "vllm:kv_cache_usage_perc": _has("gauge", "share of the KV blocks that samples hold, 0 to 1"),
    "vllm:cache_config_info": VllmMetric(
        kind="gauge",
        meaning="1; how the KV cache is set up is in its labels",
        labels=(
            *_OF_ENGINE,
            "block_size",
            "cache_dtype",
            "enable_prefix_caching",
            "gpu_memory_utilization",
            "kv_cache_max_concurrency",
            "kv_cache_size_tokens",
            "num_gpu_blocks",
        ),
    ),
    "vllm:corrupted_requests": _has("counter", "requests ended because their logits were not finite"),
    "vllm:watermark_requests": _lacks("counter", "answers have no watermarks", "status"),
    "vllm:prefix_cache_queries": _has("counter", "tokens looked up in the prefix cache, by samples that start"),
    "vllm:prefix_cache_hits": _has("counter", "tokens found there"),
    "vllm:external_prefix_cache_queries": _lacks("counter", _NO_CONNECTOR),
    "vllm:external_prefix_cache_hits": _lacks("counter", _NO_CONNECTOR),
    "vllm:mm_cache_queries": _lacks("counter", _NO_IMAGES),
    "vllm:mm_cache_hits": _lacks("counter", _NO_IMAGES),
    "vllm:num_preemptions": _has("counter", "samples that lost their KV blocks to others"),
    "vllm:prompt_tokens": _has("counter", "prompt tokens of the requests taken in, once a request whatever its `n`"),
    "vllm:prompt_tokens_by_source": _has(
        "counter", "the same of requests that have started: `local_compute`, `local_cache_hit`", "source"
    ),
    "vllm:prompt_tokens_cached": _has("counter", "of these, those that were in the prefix cache"),
    "vllm:prompt_tokens_cached_by_source": _has(
        "counter", "`prefix_cache_hits` by where they were: all are `device`", "source"
    ),
    "vllm:generation_tokens": _has("counter", "tokens generated"),
    "vllm:request_success": VllmMetric(
        kind="counter",
        meaning="answers that ended, by how",
        labels=(*_OF_ENGINE, "finished_reason"),
        server_only=True,
    ),
    "vllm:admission_rejections": VllmMetric(
        kind="counter", meaning="requests refused for load", labels=("model_name", "reason"), server_only=True
    ),
    "vllm:request_prompt_tokens": _has("histogram", "tokens of the prompt, of each sample that ended by itself"),
    "vllm:request_generation_tokens": _has("histogram", "tokens of its answer"),
    "vllm:iteration_tokens_total": _has("histogram", "tokens of prompts that a step computed, and tokens that it drew"),
    "vllm:request_max_num_generation_tokens": _has("histogram", "tokens of a request's longest answer"),
    "vllm:request_params_n": _has("histogram", "`n` of a request, once all of its answers have ended"),
    "vllm:request_params_max_tokens": _has("histogram", "`max_tokens` of a sample"),
    "vllm:time_to_first_token_seconds": _has(
        "histogram", "from the arrival of a request at the server to its first token; in a run, at the engine"
    ),
    "vllm:inter_token_latency_seconds": _has("histogram", "between two tokens of a sample"),
    "vllm:request_time_per_output_token_seconds": _has("histogram", "the same in the mean of a sample"),
    "vllm:e2e_request_latency_seconds": _has(
        "histogram", "from the arrival of a request at the server to its end; in a run, at the engine"
    ),
    "vllm:request_queue_time_seconds": _has("histogram", "from the arrival of a request at its engine to its start"),
    "vllm:request_inference_time_seconds": _has("histogram", "of a sample, from its start to its last token"),
    "vllm:request_prefill_time_seconds": _has("histogram", "from its start to its first token"),
    "vllm:request_decode_time_seconds": _has("histogram", "from its first token to its last"),
    "vllm:request_num_preemptions": _has("histogram", "times that it lost its KV blocks to others"),
    "vllm:request_prefill_kv_computed_tokens": _has(
        "histogram", "tokens computed before its first: not cached ones, nor a prompt that another sample has computed"
    ),
    "vllm:kv_block_lifetime_seconds": _lacks("histogram", _NO_BLOCK_TIMES),
    "vllm:kv_block_idle_before_evict_seconds": _lacks("histogram", _NO_BLOCK_TIMES),
    "vllm:kv_block_reuse_gap_seconds": _lacks("histogram", _NO_BLOCK_TIMES),
    "vllm:lora_requests_info": VllmMetric(
        kind="gauge",
        meaning="time of now; which LoRA adapters requests have that run and that wait, of all replicas, is in its "
        "labels; `max_lora` are those that are loaded",
        labels=("max_lora", "waiting_lora_adapters", "running_lora_adapters"),
    ),
}
"""In the order of vLLM's source."""
