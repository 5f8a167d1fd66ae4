"""Weights from a trainer's process into an engine's on the same GPU, by the transport ``cuda_ipc``: each part of it,
and a plain copy of the same bytes within the GPU.

On a CPU the same lines send a file.
"""

from __future__ import annotations

import time
from itertools import pairwise
from multiprocessing.connection import Connection
from tempfile import TemporaryDirectory
from typing import Any

import torch
from gpu_engine import workload
from torch import multiprocessing

from gpu_parts.base import Place, Report
from gpu_parts.models import make_engine, serve, synchronize, tokens
from rlserve.engine import Engine
from rlserve.engine.weights.fingerprint import fingerprint
from rlserve.weights.config import CudaIpcConfig, SharedFolderConfig, WeightsConfig
from rlserve.weights.contents.whole_model import WholeModel
from rlserve.weights.offer import Offer
from rlserve.weights.receiver import Receiver
from rlserve.weights.sender import Sender
from rlserve.weights.transports.factory import create_receiving_end, create_sending_end

SCALE = 1.01
"""What the weights are multiplied by from version to version, so that none has those of another."""
NUM_ROUNDS = 5
"""The first takes new memory, and is told apart."""
PARTS = ("snapshot and fingerprint", "send", "receive", "stage and prove", "pause: swap and prove")


def measure_ipc(place: Place, report: Report) -> None:
    """Send several versions."""
    with TemporaryDirectory() as folder:
        _measure(place, report, CudaIpcConfig() if place.on_gpu else SharedFolderConfig(folder=folder, anchor_every=1))


def _measure(place: Place, report: Report, config: WeightsConfig) -> None:
    how = f"weights by {config.transport}"
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_serve_engine, args=(there, place, config), daemon=True)
    process.start()
    there.close()
    _receive(here, place)  # it is ready
    engine = _make_small_engine(place)
    masters = {name: tensor.detach().float() for name, tensor in engine.named_weights()}
    dtype = next(iter(engine.named_weights()))[1].dtype
    sender = Sender("trainer", create_sending_end(config), WholeModel(dtype), keeps_last=False)
    spent, are_proved = [], []
    for version in range(1, NUM_ROUNDS + 1):
        for tensor in masters.values():
            tensor.mul_(SCALE)
        synchronize(place)
        stamps = [time.perf_counter()]
        sender.take_snapshot(version, masters)
        stamps.append(time.perf_counter())
        cargo, part = sender.send(version, None, ())
        stamps.append(time.perf_counter())
        offer = Offer(version=version, parts=(part,))
        here.send((offer, cargo))
        found = _receive(here, place)
        whole_s = time.perf_counter() - stamps[0]
        spent.append((*(end - start for start, end in pairwise(stamps)), *found["parts_s"], whole_s))
        are_proved.append(found["fingerprint"] == offer.fingerprint)
    engine.load_weights(NUM_ROUNDS, masters)
    expected = tokens(serve(engine, workload(4, 4, 16, 100)))
    here.send(None)
    verdict = _receive(here, place)
    process.join(timeout=max(1.0, min(20.0, place.rest_s)))
    sender.discard_all()
    copy_s, prove_s = _plain_copy_s(place, part.num_bytes), _fingerprint_s(place, engine)
    medians = [sorted(column)[len(column) // 2] for column in zip(*spent[1:], strict=True)]
    report.figure(f"{how}: bytes", part.num_bytes)
    report.figure(f"{how}: s, first", spent[0][-1])
    report.figure(f"{how}: s, median of the others", medians[-1])
    for name, median_s in zip(PARTS, medians, strict=False):
        report.figure(f"{how}: of it s, {name}", median_s)
    report.figure(f"{how}: s, a plain copy of the same bytes on the device", copy_s)
    report.figure(f"{how}: s, a fingerprint of the same bytes on the device", prove_s)
    report.figure(f"{how}: times a plain copy", medians[-1] / copy_s)
    report.holds(f"{how}: the engine's fingerprint is what was sent, in all rounds", all(are_proved))
    report.holds(f"{how}: what arrived lies on the engine's device", verdict["device"] == place.device)
    report.holds(f"{how}: the tokens of an engine here with the same weights", verdict["tokens"] == expected)
    if not place.on_gpu:
        report.skipped("weights by cuda_ipc", "needs a GPU: measured with files, to try the harness")


def _make_small_engine(place: Place) -> Engine:
    """With a small cache and no graphs, which take seconds to capture: it answers a few requests."""
    return make_engine(place, "596m", kv_cache_bytes=2**28 if place.on_gpu else 2**20, cuda_graphs=False)


def _plain_copy_s(place: Place, num_bytes: int) -> float:
    source = torch.zeros(num_bytes, dtype=torch.uint8, device=place.device)
    target = torch.empty_like(source)
    return _median_s(place, lambda: target.copy_(source))


def _fingerprint_s(place: Place, engine: Engine) -> float:
    return _median_s(place, lambda: fingerprint(engine.named_weights()))


def _median_s(place: Place, action: Any) -> float:
    spent = []
    for _ in range(NUM_ROUNDS):
        synchronize(place)
        start = time.perf_counter()
        action()
        synchronize(place)
        spent.append(time.perf_counter() - start)
    return sorted(spent)[NUM_ROUNDS // 2]


def _receive(connection: Connection, place: Place) -> Any:
    """The next message of the other process; EOFError if it is gone."""
    if not connection.poll(max(0.0, place.rest_s)):
        raise TimeoutError("the process of the engine does not answer")
    return connection.recv()


def _serve_engine(connection: Connection, place: Place, config: WeightsConfig) -> None:
    """The other process: takes versions into its engine until None comes."""
    engine = _make_small_engine(place)
    receiver = Receiver(create_receiving_end(config), keeps_last=False)
    devices: set[str] = set()
    stamps: list[float] = []

    def stage(arrived: Any) -> Any:
        stamps.append(time.perf_counter())
        devices.update(tensor.device.type for tensor in arrived.values())
        return engine.stage_weights(arrived)

    connection.send("ready")
    while (message := connection.recv()) is not None:
        offer, cargo = message
        stamps[:] = [time.perf_counter()]
        staged = receiver.receive([offer], [cargo], stage)
        stamps.append(time.perf_counter())
        found = engine.swap_weights(offer.version, staged)
        stamps.append(time.perf_counter())
        del staged
        connection.send({"fingerprint": found, "parts_s": [end - start for start, end in pairwise(stamps)]})
    connection.send({"device": ", ".join(sorted(devices)), "tokens": tokens(serve(engine, workload(4, 4, 16, 100)))})
