"""A sending end in a process of its own, to be lost."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from forked import ForkedProcess

from rlserve.weights.packing import Snapshot, take_snapshot
from rlserve.weights.reused_memory import ReusedMemory
from rlserve.weights.transports.base import SendingEnd


def snapshot_of(version: int, end: SendingEnd, device: str) -> Snapshot:
    """Numbers that follow from the version, in memory that this end sends from."""
    numbers = np.random.default_rng(version).normal(size=300_000).astype(np.float32)
    tensors = {"w": torch.from_numpy(numbers).to(device), "none": torch.zeros(0, 2, device=device)}
    return take_snapshot(version, tensors, torch.float32, ReusedMemory(end.new_block))


class SenderProcess(ForkedProcess):
    """Has sent version 1."""

    def __init__(self, make_end: Callable[[], SendingEnd], device: str) -> None:
        super().__init__(_send, make_end, device)
        self.cargo, self.fingerprint = self.result()


@contextmanager
def sender_process(make_end: Callable[[], SendingEnd], device: str) -> Iterator[SenderProcess]:
    """Start it; kill it at the end."""
    sender = SenderProcess(make_end, device)
    try:
        yield sender
    finally:
        sender.kill()


def _send(pipe: Any, make_end: Callable[[], SendingEnd], device: str) -> None:
    end = make_end()
    snapshot = snapshot_of(1, end, device)
    pipe.send((end.send(snapshot.pack()), snapshot.fingerprint))
    pipe.recv()  # until it is killed
