"""Weights by broadcast from one process to another: NCCL between two GPUs, gloo where there are not two."""

from __future__ import annotations

import hashlib
import time
from multiprocessing.connection import Connection

import numpy as np
import torch
from torch import multiprocessing

from gpu_parts.base import Place, Report
from rlserve.distributed.addresses import LOOPBACK
from rlserve.weights.config import NcclConfig
from rlserve.weights.packing import take_snapshot
from rlserve.weights.transports.nccl import NcclReceivingEnd, NcclSendingEnd

NUM_ROUNDS = 4


def measure_broadcast(place: Place, report: Report) -> None:
    """Send a version several times, of which the first forms the group; the seconds until the other process has it."""
    by_nccl = place.on_gpu and torch.cuda.device_count() > 1
    how = "NCCL" if by_nccl else "gloo"
    config = NcclConfig(backend="nccl" if by_nccl else "gloo", host=LOOPBACK, gather_s=0.0)
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_receive_all, args=(there, config, by_nccl), daemon=True)
    process.start()
    there.close()
    _answer(here, place)  # it is ready
    content = np.random.default_rng(0).integers(0, 255, 2**30 if place.on_gpu else 2**20, dtype=np.uint8)
    packed = take_snapshot(1, {"w": torch.from_numpy(content).view(torch.bfloat16)}, torch.bfloat16).pack()
    sender = NcclSendingEnd(config)
    spent: list[float] = []
    for _ in range(NUM_ROUNDS):
        cargo = sender.send(packed)
        start = time.perf_counter()
        here.send(cargo)
        _answer(here, place)
        spent.append(time.perf_counter() - start)
    here.send(None)
    is_whole = _answer(here, place) == hashlib.sha256(packed.payload.numpy()).hexdigest()
    sender.discard(())
    process.join(timeout=max(1.0, min(20.0, place.rest_s)))
    report.figure(f"weights by {how}: bytes", packed.manifest.num_bytes)
    report.figure(f"weights by {how}: s, first", spent[0])
    report.figure(f"weights by {how}: s, median of the others", sorted(spent[1:])[len(spent[1:]) // 2])
    report.holds(f"weights by {how}: byte by byte those that were sent", is_whole)
    if not by_nccl:
        report.skipped("weights by NCCL", "needs two GPUs: measured with gloo, to try the harness")


def _answer(connection: Connection, place: Place) -> object:
    """The next message of the other process; EOFError if it is gone."""
    if not connection.poll(max(0.0, place.rest_s)):
        raise TimeoutError("the process that receives does not answer")
    return connection.recv()


def _receive_all(connection: Connection, config: NcclConfig, by_nccl: bool) -> None:
    """The other process: receives until None comes, and tells the SHA-256 of what it received last."""
    if by_nccl:
        torch.cuda.set_device(1)
    end = NcclReceivingEnd(config)
    connection.send("ready")
    packed = None
    while (cargo := connection.recv()) is not None:
        packed = end.receive(cargo)
        connection.send("received")
    assert packed is not None
    connection.send(hashlib.sha256(packed.payload.numpy()).hexdigest())
