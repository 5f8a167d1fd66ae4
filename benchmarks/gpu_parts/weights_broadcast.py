"""Weights by broadcast from one process to two others, of which one is lost and replaced.

By NCCL between as many GPUs as there are. On a single one each process is taken for a machine of its own, and NCCL goes
over sockets with all ends on that GPU: this shows that it works, and how fast sockets are. Without a GPU gloo does the
same.
"""

from __future__ import annotations

import hashlib
import os
import time
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import torch
from torch import multiprocessing

from gpu_parts.base import Place, Report
from rlserve.distributed.addresses import LOOPBACK
from rlserve.weights.config import NcclConfig
from rlserve.weights.packing import PackedWeights, take_snapshot
from rlserve.weights.transports.nccl import NcclReceivingEnd, NcclSendingEnd

NUM_ROUNDS = 5
"""Of one group; the first forms it."""
NUM_PROCESSES = 3
"""One that sends and two that receive at a time."""
PEER_TIMEOUT_S = 20.0


def measure_broadcast(place: Place, report: Report) -> None:
    """Send versions to two, to the one that is left, and to that and another; the seconds until they have them."""
    num_gpus = torch.cuda.device_count() if place.on_gpu else 0
    is_by_sockets = 0 < num_gpus < NUM_PROCESSES
    backend = "NCCL" if num_gpus else "gloo"
    how = f"weights by {backend}" + (f" over sockets, all ends on {num_gpus} GPU" if is_by_sockets else "")
    config = NcclConfig(
        backend="nccl" if num_gpus else "gloo", host=LOOPBACK, gather_s=0.2, peer_timeout_s=PEER_TIMEOUT_S
    )
    _take_place(0, num_gpus)
    first, second = (_Receiver(place, rank, num_gpus, config) for rank in (1, 2))
    packed = _packed(2**20 if not num_gpus else 2**28 if is_by_sockets else 2**30)
    digest = hashlib.sha256(packed.payload.numpy()).hexdigest()
    sender = NcclSendingEnd(config)
    found: list[str] = []

    def send(*those: _Receiver) -> float:
        start = time.perf_counter()
        cargo = sender.send(packed)
        for receiver in those:
            receiver.send(cargo)
        for receiver in those:
            receiver.answer()
        spent_s = time.perf_counter() - start
        found.extend(receiver.digest() for receiver in those)
        return spent_s

    spent = [send(first, second) for _ in range(NUM_ROUNDS)]
    report.figure(f"{how}: bytes", packed.manifest.num_bytes)
    report.figure(f"{how}: s, first, which forms the group", spent[0])
    report.figure(f"{how}: s, median of the others", sorted(spent[1:])[len(spent[1:]) // 2])
    second.kill()
    report.figure(f"{how}: s, after one was killed, without it", send(first))
    third = _Receiver(place, 2, num_gpus, config)
    report.figure(f"{how}: s, after another came, with it", send(first, third))
    report.figure(f"{how}: s, of the same two again", send(first, third))
    report.holds(f"{how}: byte by byte those that were sent, everywhere", set(found) == {digest})
    sender.discard(())
    for receiver in (first, third):
        receiver.kill()
    if num_gpus < NUM_PROCESSES:
        report.skipped("weights by NCCL between GPUs", f"needs {NUM_PROCESSES} GPUs")


def _take_place(rank: int, num_gpus: int) -> None:
    """Choose this process's GPU, and what NCCL takes for its machine: two ranks of one machine may not share a GPU."""
    if num_gpus:
        torch.cuda.set_device(rank % num_gpus)
    if num_gpus < NUM_PROCESSES:
        os.environ |= {"NCCL_HOSTID": f"rank-{rank}", "NCCL_SOCKET_IFNAME": "lo", "NCCL_IB_DISABLE": "1"}


def _packed(num_bytes: int) -> PackedWeights:
    content = np.random.default_rng(0).integers(0, 255, num_bytes, dtype=np.uint8)
    return take_snapshot(1, {"w": torch.from_numpy(content).view(torch.bfloat16)}, torch.bfloat16).pack()


class _Receiver:
    """A process that receives."""

    def __init__(self, place: Place, rank: int, num_gpus: int, config: NcclConfig) -> None:
        context = multiprocessing.get_context("spawn")
        self._place = place
        self._here, there = context.Pipe()
        self._process = context.Process(target=_receive_all, args=(there, rank, num_gpus, config), daemon=True)
        self._process.start()
        there.close()
        self.answer()  # it is ready

    def send(self, message: object) -> None:
        """Give it a cargo to receive."""
        self._here.send(message)

    def answer(self) -> Any:
        """Its next message; EOFError if it is gone."""
        if not self._here.poll(max(0.0, self._place.rest_s)):
            raise TimeoutError("a process that receives does not answer")
        return self._here.recv()

    def digest(self) -> str:
        """SHA-256 of what it received last."""
        self.send(None)
        return str(self.answer())

    def kill(self) -> None:
        """The process is gone."""
        self._process.kill()
        self._process.join()


def _receive_all(connection: Connection, rank: int, num_gpus: int, config: NcclConfig) -> None:
    """The other process: receives what comes, and tells its digest for None."""
    _take_place(rank, num_gpus)
    end = NcclReceivingEnd(config)
    connection.send("ready")
    packed = None
    while True:
        if (cargo := connection.recv()) is not None:
            packed = end.receive(cargo)
            connection.send("received")
        else:
            assert packed is not None
            connection.send(hashlib.sha256(packed.payload.numpy()).hexdigest())
