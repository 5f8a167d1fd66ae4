"""What is counted and timed of the requests in the engine, as they move on.

::

    note_schedule ──► note_step ──► note_tokens ──► note_end_of_sample ──► note_end_of_request
                                                                     stats ──► EngineStats
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rlserve.engine.kv_cache.block_pool import BlockPool
from rlserve.engine.requests.request import FinishReason
from rlserve.engine.scheduling.scheduled_step import ScheduledStep
from rlserve.engine.scheduling.scheduler import Scheduler
from rlserve.engine.sequences.sequence import RequestState, Sequence, SequenceState
from rlserve.engine.sequences.table import SequenceTable
from rlserve.engine.stats.ended_samples import EndedSample, EndedSamplesCounter
from rlserve.engine.stats.engine_stats import AdapterUse, EngineStats
from rlserve.engine.stats.metrics import NO_TIME, Latencies

_OF_THEIR_OWN = (FinishReason.STOP, FinishReason.LENGTH)
"""How samples end that neither their caller nor an error has ended."""


@dataclass(kw_only=True)
class GenerationCounts:
    """Running totals; ``EngineStats`` says of what."""

    num_arrivals: int = 0
    num_steps: int = 0
    num_finished_requests: int = 0
    num_corrupted_requests: int = 0
    num_prompt_tokens: int = 0
    num_started_prompt_tokens: int = 0
    num_cached_prompt_tokens: int = 0
    num_generated_tokens: int = 0
    num_computed_tokens: int = 0
    num_dropped_tokens: int = 0


class Measurements:
    """
    Args:
        max_model_len: most tokens of a prompt and its answer.
        cache_config: of ``EngineStats``.
    """

    def __init__(self, max_model_len: int, cache_config: Mapping[str, str]) -> None:
        self.counts = GenerationCounts()
        self._cache_config = cache_config
        self._latencies = Latencies()
        self._ended_samples = EndedSamplesCounter(max_model_len)

    def note_schedule(self, plan: ScheduledStep, now_s: float) -> None:
        """Note what a step with chunks starts."""
        for chunk in plan.chunks:
            if chunk.sequence.scheduled_s == NO_TIME:
                chunk.sequence.scheduled_s = now_s
        for owner in plan.started:
            owner.queue_time_s = now_s - owner.arrival_s
            self._latencies.queue_time.observe(owner.queue_time_s)
            self.counts.num_started_prompt_tokens += len(owner.prompt)
            self.counts.num_cached_prompt_tokens += owner.num_cached_tokens

    def note_step(self, *, num_decoding: int, num_prefill: int) -> None:
        """Note that a step computes the last token of so many samples, and so many of prompts."""
        self.counts.num_steps += 1
        self.counts.num_computed_tokens += num_decoding + num_prefill

    def note_launch(self, *, num_prefill: int, num_drawn: int) -> None:
        """Note that a step computes so many tokens of prompts, and draws so many."""
        self._latencies.step_tokens.observe(num_prefill + num_drawn)

    def note_tokens(self, table: SequenceTable, rows_B: NDArray[np.intp], now_s: float) -> None:
        """Note when the rows got their token."""
        last_token_s_B = table.last_token_s[rows_B]
        self._latencies.observe_tokens(now_s, last_token_s_B)
        for row in rows_B[last_token_s_B == NO_TIME].tolist():
            sequence = table.sequence(row)
            sequence.first_token_s, owner = now_s, sequence.owner
            if owner.time_to_first_token_s is None:
                owner.time_to_first_token_s = now_s - owner.arrival_s
            self._latencies.time_to_first_token.observe(now_s - owner.arrival_s)
        table.last_token_s[rows_B] = now_s

    def note_end_of_sample(self, sequence: Sequence, reason: FinishReason) -> None:
        """Note a sample that has ended and has no row any more."""
        if reason in _OF_THEIR_OWN:
            self._ended_samples.observe(_ended(sequence))

    def note_end_of_request(self, owner: RequestState, now_s: float) -> None:
        """Note a request whose samples have all ended."""
        self._latencies.e2e_latency.observe(now_s - owner.arrival_s)
        samples = owner.outputs.values()
        if all(sample.finish_reason in _OF_THEIR_OWN for sample in samples):
            self._ended_samples.observe_request(len(samples), max(len(sample.tokens) for sample in samples))

    def stats(
        self, scheduler: Scheduler, pool: BlockPool, num_compiling: int, weight_version: int, adapters: AdapterUse
    ) -> EngineStats:
        """The numbers of now."""
        counts, totals, latencies = scheduler.counts, self.counts, self._latencies
        return EngineStats(
            num_running=scheduler.num_running,
            num_waiting=scheduler.num_waiting + num_compiling,
            num_compiling=num_compiling,
            adapters=adapters,
            cache_config=self._cache_config,
            num_blocks=pool.num_blocks,
            num_used_blocks=pool.num_blocks - pool.num_free,
            weight_version=weight_version,
            num_steps=totals.num_steps,
            num_prompt_tokens=totals.num_prompt_tokens,
            num_started_prompt_tokens=totals.num_started_prompt_tokens,
            num_cached_prompt_tokens=totals.num_cached_prompt_tokens,
            num_generated_tokens=totals.num_generated_tokens,
            num_computed_tokens=totals.num_computed_tokens,
            num_dropped_tokens=totals.num_dropped_tokens,
            num_finished_requests=totals.num_finished_requests,
            num_corrupted_requests=totals.num_corrupted_requests,
            num_preemptions=counts.num_preemptions,
            num_forks=counts.num_forks,
            num_block_copies=counts.num_block_copies,
            num_prefill_chunks=counts.num_prefill_chunks,
            num_partial_chunks=counts.num_partial_chunks,
            prefix_queries=counts.prefix_queries,
            prefix_hits=counts.prefix_hits,
            num_recovered_tokens=counts.num_recovered_tokens,
            time_to_first_token=latencies.time_to_first_token.snapshot(),
            inter_token_latency=latencies.inter_token_latency.snapshot(),
            queue_time=latencies.queue_time.snapshot(),
            e2e_latency=latencies.e2e_latency.snapshot(),
            step_tokens=latencies.step_tokens.snapshot(),
            ended_samples=self._ended_samples.snapshot(),
        )


def adapter_use(num_loaded: int, requests: Iterable[RequestState]) -> AdapterUse:
    """Which adapters the requests have."""
    running: set[str] = set()
    waiting: set[str] = set()
    for owner in requests:
        if owner.adapter is not None:
            for sequence in owner.unfinished:
                (running if sequence.state is SequenceState.RUNNING else waiting).add(owner.adapter.name)
    return AdapterUse(num_loaded=num_loaded, running=tuple(sorted(running)), waiting=tuple(sorted(waiting)))


def _ended(sequence: Sequence) -> EndedSample:
    """What is measured of a sample that has ended. One that took over a prompt was scheduled with its request."""
    owner, num_tokens = sequence.owner, len(sequence.history)
    with_request_s = owner.arrival_s + (owner.queue_time_s or 0.0)
    return EndedSample(
        num_prompt_tokens=len(owner.prompt),
        num_generated_tokens=num_tokens,
        num_drawn_tokens=num_tokens - sequence.num_resumed_tokens,
        num_prefilled_tokens=sequence.num_prefilled_tokens,
        max_tokens=owner.request.sampling.max_tokens_of(sequence.index),
        num_preemptions=sequence.num_preemptions,
        scheduled_s=with_request_s if sequence.scheduled_s == NO_TIME else sequence.scheduled_s,
        first_token_s=sequence.first_token_s,
        last_token_s=sequence.last_token_s,
    )
