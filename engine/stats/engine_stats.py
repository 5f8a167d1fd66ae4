"""Numbers about an engine, at one moment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from rlserve.engine.stats.ended_samples import EndedSamples
from rlserve.engine.stats.metrics import Histogram


@dataclass(frozen=True, kw_only=True)
class AdapterUse:
    """Who has LoRA adapters now."""

    num_loaded: int
    running: tuple[str, ...] = ()
    """Names, in order, of those that a sample with KV blocks has."""
    waiting: tuple[str, ...] = ()
    """Of those that a sample without any has."""


@dataclass(frozen=True, kw_only=True)
class EngineStats:
    """Gauges of now, and totals since the engine was made."""

    num_running: int
    """Samples that have KV blocks."""
    num_waiting: int
    """Samples that have none yet, or lost them."""
    num_compiling: int
    """Of these, those whose grammar is being compiled."""
    cache_config: Mapping[str, str]
    """How the KV cache is set up, by vLLM's names."""
    adapters: AdapterUse
    num_blocks: int
    num_used_blocks: int
    weight_version: int
    num_steps: int
    num_prompt_tokens: int
    """Prompt tokens of the requests taken in."""
    num_started_prompt_tokens: int
    """Of these, those of requests that have started."""
    num_cached_prompt_tokens: int
    """Of these, those whose keys and values were in the prefix cache."""
    num_generated_tokens: int
    num_computed_tokens: int
    """Tokens that went through the model: prefill, decode, and what preemption made to be computed again."""
    num_dropped_tokens: int
    """Tokens drawn for samples that had ended or were aborted meanwhile; only overlapped scheduling does so."""
    num_finished_requests: int
    """Requests whose output was handed out, aborted and refused ones included."""
    num_corrupted_requests: int
    """Ended because their logits were not finite."""
    num_preemptions: int
    num_forks: int
    """Samples that took over the prompt of another sample of their request."""
    num_block_copies: int
    """Blocks copied because a sample wrote into one that it shared."""
    num_prefill_chunks: int
    num_partial_chunks: int
    """Chunks that left a part of their prompt to a later step."""
    prefix_queries: int
    """Tokens looked up in the prefix cache, by samples that start; not when they come back from a preemption."""
    prefix_hits: int
    """Tokens found there."""
    num_recovered_tokens: int
    """Tokens of preempted samples that were still cached when they came back."""
    time_to_first_token: Histogram
    """From a request's arrival to the first token that this engine drew for a sample."""
    inter_token_latency: Histogram
    """Between two tokens of a sample."""
    queue_time: Histogram
    """From a request's arrival to its first step."""
    e2e_latency: Histogram
    """From a request's arrival to its end, abort included."""
    step_tokens: Histogram
    """Tokens of prompts that a step computed, and tokens that it drew."""
    ended_samples: EndedSamples

    @property
    def kv_cache_usage(self) -> float:
        """Share of the KV blocks that sequences hold, 0 to 1."""
        return self.num_used_blocks / self.num_blocks

    @property
    def prefix_hit_rate(self) -> float:
        """Share of the looked-up tokens that were found, 0 to 1."""
        return self.prefix_hits / self.prefix_queries if self.prefix_queries else 0.0
