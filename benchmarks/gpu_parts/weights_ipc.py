"""Weights from a trainer's process into an engine's on the same GPU, by CUDA IPC: torch's own reductions.

On a CPU the same lines send shared memory.
"""

from __future__ import annotations

import time
from multiprocessing.connection import Connection
from typing import Any

import torch
from gpu_engine import workload
from torch import multiprocessing

from gpu_parts.base import Place, Report
from gpu_parts.models import make_engine, serve, synchronize, tokens
from rlserve.engine import Engine

SCALE = 1.01
"""What the weights are multiplied by, so that they are not those of the folder."""
NUM_ROUNDS = 3


def measure_ipc(place: Place, report: Report) -> None:
    """Send a version several times; the median of the seconds until the other process has it in its engine."""
    how = "CUDA IPC" if place.on_gpu else "shared memory"
    context = multiprocessing.get_context("spawn")
    weights_out = context.SimpleQueue()
    here, there = context.Pipe()
    process = context.Process(target=_serve_engine, args=(weights_out, there, place), daemon=True)
    process.start()
    there.close()
    _receive(here, place)  # it is ready
    engine = _make_small_engine(place)
    weights = {name: (tensor.detach() * SCALE).clone() for name, tensor in engine.named_weights()}
    num_bytes = sum(tensor.nbytes for tensor in weights.values())
    engine.load_weights(1, weights)
    expected = tokens(serve(engine, workload(4, 4, 16, 100)))
    synchronize(place)
    spent: list[float] = []
    for version in range(1, NUM_ROUNDS + 1):
        start = time.perf_counter()
        weights_out.put((version, weights))
        _receive(here, place)
        spent.append(time.perf_counter() - start)
    is_equal, found = _ask(here, weights_out, place)
    process.join(timeout=max(1.0, min(20.0, place.rest_s)))
    report.figure(f"weights by {how}: bytes", num_bytes)
    report.figure(f"weights by {how}: s, first", spent[0])
    report.figure(f"weights by {how}: s, median", sorted(spent)[NUM_ROUNDS // 2])
    report.holds(f"weights by {how}: byte by byte those that were sent", is_equal)
    report.holds(f"weights by {how}: the tokens of an engine here with the same weights", found == expected)
    if not place.on_gpu:
        report.skipped("weights by CUDA IPC", "needs a GPU: measured with shared memory, to try the harness")


def _make_small_engine(place: Place) -> Engine:
    """With a small cache and no graphs, which take seconds to capture: it answers a few requests."""
    return make_engine(place, "596m", kv_cache_bytes=2**28 if place.on_gpu else 2**20, cuda_graphs=False)


def _ask(here: Connection, weights_out: Any, place: Place) -> tuple[bool, Any]:
    weights_out.put(None)
    verdict = _receive(here, place)
    return verdict["is_equal"], verdict["tokens"]


def _receive(connection: Connection, place: Place) -> Any:
    """The next message of the other process; EOFError if it is gone."""
    if not connection.poll(max(0.0, place.rest_s)):
        raise TimeoutError("the process of the engine does not answer")
    return connection.recv()


def _serve_engine(weights_in: Any, connection: Connection, place: Place) -> None:
    """The other process: takes versions into its engine until None comes, and then compares."""
    engine = _make_small_engine(place)
    connection.send("ready")
    received: dict[str, torch.Tensor] = {}
    while (message := weights_in.get()) is not None:
        version, received = message
        engine.load_weights(version, received)
        synchronize(place)
        connection.send(version)
    is_equal = all(torch.equal(tensor, received[name]) for name, tensor in engine.named_weights())
    connection.send({"is_equal": is_equal, "tokens": tokens(serve(engine, workload(4, 4, 16, 100)))})
    received.clear()  # given back before the process that owns the memory ends
