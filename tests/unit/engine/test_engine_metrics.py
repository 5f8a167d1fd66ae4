"""Latencies, with a clock that the test sets."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from adapter_builders import save_adapter
from engine_builders import make_engine, make_request, run, save_model
from hypothesis import given
from hypothesis import strategies as st

from rlserve.engine import Engine, EngineConfig, EngineStats, RequestOutput
from rlserve.engine.stats.ended_samples import PREEMPTIONS_BOUNDS, SAMPLES_OF_REQUEST_BOUNDS, tokens_bounds
from rlserve.engine.stats.metrics import (
    FIRST_TOKEN_BOUNDS_S,
    INTER_TOKEN_BOUNDS_S,
    LORA_INFO,
    NO_TIME,
    REQUEST_BOUNDS_S,
    STEP_TOKENS_BOUNDS,
    Histogram,
    HistogramCounter,
    Labelled,
    Latencies,
    vllm_metrics,
)

PROMPT = (3, 1, 4, 1, 5)


class Clock:
    """Stands still until it is moved."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def engine(tmp_path: Path, clock: Clock) -> Engine:
    config = EngineConfig(dtype="float32", block_size=4, num_blocks=12, max_num_sequences=2, max_num_batched_tokens=16)
    return Engine(save_model(tmp_path), config, clock=clock)


def _histogram(bounds: tuple[float, ...], times_s: list[float]) -> Histogram:
    """The definition: a bucket holds what is at most its bound and more than the one before."""
    counts = [0] * (len(bounds) + 1)
    for time_s in times_s:
        counts[bisect_left(bounds, time_s)] += 1
    return Histogram(bounds=bounds, counts=tuple(counts), sum=pytest.approx(sum(times_s)))


def test_the_times_of_a_request_from_arrival_to_end(engine: Engine, clock: Clock) -> None:
    engine.add(make_request("0", PROMPT, n=2, max_tokens=4))
    clock.now_s += 0.7
    step_ends = []
    while engine.has_work:
        clock.now_s += 0.04
        engine.step()
        step_ends.append(clock.now_s)
    stats = engine.stats()
    first = 0.74
    assert stats.queue_time == _histogram(REQUEST_BOUNDS_S, [first])
    assert stats.time_to_first_token == _histogram(FIRST_TOKEN_BOUNDS_S, [first] * 2)
    gaps = [after - before for before, after in pairwise(step_ends)]
    assert len(gaps) == 3
    assert stats.inter_token_latency == _histogram(INTER_TOKEN_BOUNDS_S, gaps * 2)
    assert stats.e2e_latency == _histogram(REQUEST_BOUNDS_S, [step_ends[-1] - 100.0])


def test_preemption_and_pause_lengthen_the_time_between_tokens_and_count_no_second_first(
    engine: Engine, clock: Clock
) -> None:
    requests = [make_request(str(index), PROMPT, max_tokens=30, seed=index) for index in range(2)]
    for request in requests:
        engine.add(request)
    for _ in range(3):
        clock.now_s += 0.02
        engine.step()
    engine.pause()
    clock.now_s += 50.0
    engine.resume()
    while engine.has_work:
        clock.now_s += 0.02
        engine.step()
    stats = engine.stats()
    assert stats.num_preemptions > 0
    assert stats.time_to_first_token.count == 2
    assert stats.inter_token_latency.count == 2 * 29
    assert stats.inter_token_latency.counts[INTER_TOKEN_BOUNDS_S.index(80.0)] == 2
    assert stats.queue_time.count == stats.e2e_latency.count == 2


def test_refused_requests_have_no_times_and_aborted_and_resumed_ones_have_those_of_this_engine(
    engine: Engine, clock: Clock
) -> None:
    request = make_request("0", PROMPT, max_tokens=8)
    run(engine, [make_request("bad", ())])
    assert engine.stats().e2e_latency.count == 0
    engine.add(request)
    engine.step()
    clock.now_s += 3.0
    (partial,) = engine.abort(["0"])
    assert engine.stats().e2e_latency == _histogram(REQUEST_BOUNDS_S, [3.0])
    engine.add(replace(request, resumed=partial.samples))
    clock.now_s += 0.3
    run(engine)
    stats = engine.stats()
    assert stats.time_to_first_token == _histogram(FIRST_TOKEN_BOUNDS_S, [0.0, 0.3])
    assert stats.inter_token_latency.count == 6


@given(times_s=st.lists(st.floats(0, 1e4), max_size=40))
def test_a_histogram_counts_every_time_once(times_s: list[float]) -> None:
    counter = HistogramCounter(REQUEST_BOUNDS_S)
    for time_s in times_s:
        counter.observe(time_s)
    assert counter.snapshot() == _histogram(REQUEST_BOUNDS_S, times_s)
    assert counter.snapshot().count == len(times_s)


@given(last_s=st.lists(st.sampled_from([NO_TIME, 1.0, 1.5, 3.25]), min_size=1, max_size=30))
def test_tokens_of_one_step_are_counted_one_by_one(last_s: list[float]) -> None:
    latencies = Latencies()
    latencies.observe_tokens(4.0, np.array(last_s))
    expected = _histogram(INTER_TOKEN_BOUNDS_S, [4.0 - time_s for time_s in last_s if time_s != NO_TIME])
    assert latencies.inter_token_latency.snapshot() == expected


def test_the_phases_of_samples_and_what_they_took(engine: Engine, clock: Clock) -> None:
    engine.add(make_request("0", PROMPT, n=2, max_tokens=4))
    clock.now_s += 0.7
    step_ends = []
    while engine.has_work:
        clock.now_s += 0.04
        engine.step()
        step_ends.append(clock.now_s)
    ended, bounds = engine.stats().ended_samples, tokens_bounds(engine.max_model_len)
    decode_s = step_ends[-1] - step_ends[0]
    assert ended.prefill_time == _histogram(REQUEST_BOUNDS_S, [0.0] * 2)  # scheduled and computed in one step
    assert ended.decode_time == ended.inference_time == _histogram(REQUEST_BOUNDS_S, [decode_s] * 2)
    assert ended.time_per_output_token == _histogram(INTER_TOKEN_BOUNDS_S, [decode_s / 3] * 2)
    assert ended.prompt_tokens == _histogram(bounds, [5] * 2)
    assert ended.generated_tokens == ended.max_tokens == _histogram(bounds, [4] * 2)
    assert ended.prefilled_tokens == _histogram(bounds, [5, 0])  # the second takes the prompt over
    assert ended.preemptions == _histogram(PREEMPTIONS_BOUNDS, [0] * 2)
    assert ended.samples_of_request == _histogram(SAMPLES_OF_REQUEST_BOUNDS, [2])
    assert ended.longest_generated_tokens == _histogram(bounds, [4])
    # The prompt in one step, of which both samples draw; then three of both.
    assert engine.stats().step_tokens == _histogram(STEP_TOKENS_BOUNDS, [5 + 2, 2, 2, 2])


def test_prompt_tokens_by_where_they_came_from(engine: Engine) -> None:
    for name in "ab":
        run(engine, [make_request(name, PROMPT * 2, max_tokens=2)])
    stats = engine.stats()
    metrics = vllm_metrics(stats)
    assert (stats.num_prompt_tokens, stats.num_started_prompt_tokens, stats.num_cached_prompt_tokens) == (20, 20, 8)
    assert _labelled(metrics["vllm:prompt_tokens_by_source"]) == {("local_compute",): 12, ("local_cache_hit",): 8}
    assert metrics["vllm:prompt_tokens_cached"] == metrics["vllm:prefix_cache_hits"] == 8
    assert _labelled(metrics["vllm:prompt_tokens_cached_by_source"]) == {("device",): 8}
    assert stats.ended_samples.prefilled_tokens.sum == 12
    engine.add(make_request("c", PROMPT))
    assert engine.stats().num_started_prompt_tokens == 20  # it has not


def test_preempted_samples_are_told_with_how_often(engine: Engine) -> None:
    run(engine, [make_request(str(index), PROMPT, max_tokens=30, seed=index) for index in range(2)])
    stats = engine.stats()
    assert stats.num_preemptions == stats.ended_samples.preemptions.sum > 0
    assert stats.ended_samples.preemptions.count == 2


def test_what_was_brought_from_elsewhere_took_no_time_here(engine: Engine, clock: Clock) -> None:
    request = make_request("0", PROMPT, max_tokens=8)
    engine.add(request)
    for _ in range(3):
        clock.now_s += 1.0
        engine.step()
    (partial,) = engine.abort(["0"])
    assert engine.stats().ended_samples.generated_tokens.count == 0  # it has not ended by itself
    engine.add(replace(request, resumed=partial.samples))
    while engine.has_work:
        clock.now_s += 0.5
        engine.step()
    ended = engine.stats().ended_samples
    num_drawn = 8 - len(partial.samples[0].tokens)
    assert ended.generated_tokens.sum == 8
    assert ended.decode_time.sum == pytest.approx(0.5 * (num_drawn - 1))
    assert ended.time_per_output_token.sum == pytest.approx(0.5)


@given(most=st.integers(1, 200_000))
def test_bounds_of_tokens_end_at_the_longest(most: int) -> None:
    bounds = tokens_bounds(most)
    assert bounds[:3] == (1, 2, 5)[: len(bounds)]
    assert bounds[-1] <= most < 2.5 * bounds[-1]


def test_vllm_names(engine: Engine) -> None:
    run(engine, [make_request("0", PROMPT, max_tokens=4), make_request("1", PROMPT, max_tokens=4)])
    stats: EngineStats = engine.stats()
    metrics = vllm_metrics(stats)
    assert metrics["vllm:generation_tokens"] == 8
    assert metrics["vllm:prompt_tokens"] == 10
    assert metrics["vllm:num_requests_running"] == metrics["vllm:kv_cache_usage_perc"] == 0
    assert _labelled(metrics["vllm:num_requests_waiting_by_reason"]) == {("capacity",): 0, ("deferred",): 0}
    told = metrics["vllm:cache_config_info"]
    assert isinstance(told, Labelled)
    assert dict(zip(told.labels, told.series[0][0], strict=True)) == {
        "block_size": "4",
        "cache_dtype": "auto",
        "enable_prefix_caching": "True",
        "gpu_memory_utilization": "0.9",
        "kv_cache_max_concurrency": str(12 // -(-engine.max_model_len // 4)),
        "kv_cache_size_tokens": "48",
        "num_gpu_blocks": "12",
    }
    assert metrics["vllm:e2e_request_latency_seconds"] == stats.e2e_latency
    assert stats.e2e_latency.count == 2


def test_adapters_of_requests_are_told_by_name(tmp_path: Path) -> None:
    engine = make_engine(save_model(tmp_path / "model"), max_num_sequences=2)
    folder = save_adapter(tmp_path / "first")
    assert vllm_metrics(engine.stats())[LORA_INFO] == _lora_info("0", "", "")
    for name in ("second", "first"):
        engine.load_adapter(name, folder)
    for name in ("first", "second", None, "second"):
        engine.add(replace(make_request(f"{name}-{engine.stats().num_waiting}", PROMPT, max_tokens=3), adapter=name))
    assert vllm_metrics(engine.stats())[LORA_INFO] == _lora_info("2", "first,second", "")
    engine.step()
    assert vllm_metrics(engine.stats())[LORA_INFO] == _lora_info("2", "second", "first,second")
    run(engine)
    assert vllm_metrics(engine.stats())[LORA_INFO] == _lora_info("2", "", "")


def _lora_info(*values: str) -> Labelled:
    return Labelled(labels=("max_lora", "waiting_lora_adapters", "running_lora_adapters"), series=((values, 1.0),))


def _labelled(value: object) -> dict[tuple[str, ...], float]:
    assert isinstance(value, Labelled)
    return dict(value.series)


def test_an_answer_tells_when_it_had_its_last_token(engine: Engine, clock: Clock) -> None:
    request = make_request("0", PROMPT, n=2, max_tokens=4)
    engine.add(request)
    clock.now_s += 0.7
    outputs: list[RequestOutput] = []
    while engine.has_work:
        clock.now_s += 0.25
        outputs += engine.step()
    (whole,) = outputs
    assert whole.queue_time_s == whole.time_to_first_token_s == pytest.approx(0.95)
    assert whole.time_to_last_token_s == pytest.approx(0.95 + 3 * 0.25)
    begun = tuple(replace(sample, tokens=sample.tokens.between(0, 2), finish_reason=None) for sample in whole.samples)
    (resumed,) = run(engine, [replace(request, id="1", resumed=begun)]).values()
    assert len(resumed.samples[0].token_ids) == 4
    assert resumed.time_to_last_token_s is None
