"""The yardstick of ``gpu_engine.py`` with one set of options: one round, after a warm-up that compiles and captures."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from importlib.util import find_spec
from typing import Any

from gpu_engine import HIGHEST_TOKEN, LONGEST, NUM_REQUESTS, SHORTEST, run_round, workload

from gpu_parts.base import Place, Report
from gpu_parts.models import make_engine
from rlserve.engine import Engine, Request

CASES: dict[str, dict[str, Any]] = {
    "triton": {"attention_backend": "triton"},
    "triton-no-overlap": {"attention_backend": "triton", "overlap_scheduling": False},
    "triton-no-graphs": {"attention_backend": "triton", "cuda_graphs": False},
    "triton-block-16": {"attention_backend": "triton", "block_size": 16},
    "triton-int8-cache": {"attention_backend": "triton", "kv_cache_dtype": "int8"},
    "flash": {"attention_backend": "flash", "block_size": 256},
    "torch": {"attention_backend": "torch", "cuda_graphs": False},
}
NUM_SLOW_REQUESTS = 32
"""Of the backend that is slow."""
NUM_WARM_UP_TOKENS = 16
RESERVE_S = 8.0
"""Kept in hand to report how far a round got that takes too long."""


def measure_engine(case: str, place: Place, report: Report) -> None:
    """Output tokens a second of all requests given at once."""
    name = f"engine {case}: output tokens/s"
    options = CASES[case]
    if not place.on_gpu and options["attention_backend"] != "torch":
        report.skipped(name, "needs a GPU")
        return
    if options["attention_backend"] == "flash" and find_spec("flash_attn") is None:
        report.skipped(name, "flash-attn is not installed")
        return
    num_requests = NUM_SLOW_REQUESTS if options["attention_backend"] == "torch" else NUM_REQUESTS
    sizes = (num_requests, SHORTEST, LONGEST, HIGHEST_TOKEN) if place.on_gpu else (4, 2, 6, 100)
    limits = {"max_num_sequences": 256, "max_num_batched_tokens": 16384} if place.on_gpu else {}
    engine = make_engine(place, "596m", **({"block_size": 32} | limits | options))
    start = time.perf_counter()
    run_round(engine, [_shortened(request) for request in workload(*sizes)])
    report.figure(f"engine {case}: warm-up, s", time.perf_counter() - start)
    tokens_per_s, share = run_until(engine, workload(*sizes), place.deadline - RESERVE_S)
    report.figure(name, tokens_per_s)
    report.figure(f"engine {case}: requests", num_requests if place.on_gpu else sizes[0])
    report.figure(f"engine {case}: share of the tokens there was time for", share)
    engine.close()


def run_until(engine: Engine, requests: Sequence[Request], deadline: float) -> tuple[float, float]:
    """Serve requests, all given at once, until ``deadline`` of ``time.monotonic()``.

    Returns the output tokens a second, and the share of all output tokens that were made.
    """
    before = engine.stats().num_generated_tokens
    start = time.perf_counter()
    for request in requests:
        engine.add(request)
    while engine.has_work and time.monotonic() < deadline:
        engine.step()
    spent_s = time.perf_counter() - start
    num_tokens = engine.stats().num_generated_tokens - before
    engine.abort([request.id for request in requests])
    engine.check_integrity()
    return num_tokens / spent_s, num_tokens / sum(request.sampling.max_tokens for request in requests)


def _shortened(request: Request) -> Request:
    """The same prompt with a short answer: compiles what the round needs, and captures its graphs."""
    return replace(request, sampling=replace(request.sampling, max_tokens=NUM_WARM_UP_TOKENS))
