"""Sleep and wake: the memory that an engine releases for a trainer, as the driver counts it."""

from __future__ import annotations

import time

import torch
from gpu_engine import workload

from gpu_parts.base import Place, Report
from gpu_parts.models import make_engine, serve, tokens

LEAST_RETURNED = 0.95
"""Share of weights and cache that must be free for other processes while the engine sleeps."""


def measure_sleep(place: Place, report: Report) -> None:
    """Release cache and weights, and take them again."""
    engine = make_engine(place, "596m")
    requests = workload(8, 4, 24, 100)
    expected = tokens(serve(engine, requests))
    weights = {name: tensor.to("cpu", copy=True) for name, tensor in engine.named_weights()}
    num_weight_bytes = sum(tensor.nbytes for tensor in weights.values())
    before_bytes = _free_bytes(place)
    start = time.perf_counter()
    engine.release_memory(weights=True, kv_cache=True)
    report.figure("sleep: s", time.perf_counter() - start)
    asleep_bytes = _free_bytes(place)
    start = time.perf_counter()
    engine.restore_memory()
    engine.load_weights(1, weights)
    if place.on_gpu:
        torch.cuda.synchronize()
    report.figure("wake, with weights from the CPU: s", time.perf_counter() - start)
    report.holds("wake: the same tokens as before", tokens(serve(engine, requests)) == expected)
    if before_bytes is None or asleep_bytes is None:
        report.skipped("sleep: share of weights and cache that is free for other processes", "needs a GPU")
        return
    num_bytes = num_weight_bytes + (engine.config.kv_cache_bytes or 0)
    report.figure("sleep: bytes of weights and cache", num_bytes)
    share = (asleep_bytes - before_bytes) / num_bytes
    report.at_least("sleep: share of weights and cache that is free for other processes", share, LEAST_RETURNED)


def _free_bytes(place: Place) -> int | None:
    """What the driver has to give; None where there is no GPU."""
    if not place.on_gpu:
        return None
    torch.cuda.synchronize()
    torch.cuda.empty_cache()  # only what the engine still holds is then in use
    free_bytes, _ = torch.cuda.mem_get_info()
    return free_bytes
