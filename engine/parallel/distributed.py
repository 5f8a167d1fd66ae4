"""Ranks as processes on torch.distributed: gloo between CPUs; between GPUs NCCL, and gloo for messages."""

from __future__ import annotations

import socket
from collections.abc import Callable
from contextlib import AbstractContextManager
from datetime import timedelta
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.distributed import (
    BarrierOptions,
    BroadcastOptions,
    GatherOptions,
)

from rlserve.distributed.base import RankPlace
from rlserve.distributed.process_groups import failures_named, new_gloo_group, new_nccl_group
from rlserve.distributed.rendezvous import Rendezvous
from rlserve.engine.config import EngineConfig
from rlserve.engine.device.backend import resolve_device
from rlserve.engine.parallel.base import RankGroup
from rlserve.errors import WorkerFailedError

_MESSAGE_WORDS = 4096
"""Words that are always sent; a longer message takes a second broadcast."""
_NO_DEADLINE = timedelta(days=365)


def join_ranks(
    place: RankPlace,
    config: EngineConfig,
    *,
    timeout_s: float = 300.0,
    listening: socket.socket | None = None,
    check: Callable[[], None] = lambda: None,
) -> RankGroup:
    """Meet the other ranks of ``place`` and form a group.

    Args:
        place: this rank's place.
        config: says on what the ranks compute. On a GPU it is the current one: set another before.
        timeout_s: how long to wait for the others to come, and later for each of them in a collective operation.
        listening: see ``Rendezvous``; so is ``check``.

    Raises:
        DeadlineExceededError: not all ranks came in time.
        WorkerFailedError: a rank came and was lost again.
    """
    rendezvous = Rendezvous(place, group="tensor parallelism", timeout_s=timeout_s, listening=listening, check=check)
    return DistributedGroup(rendezvous, resolve_device(config.device), timeout_s)


class DistributedGroup(RankGroup):
    """See ``RankGroup``. A rank that dies closes its connections, so the others fail at once; one that hangs makes
    them fail at the deadline."""

    def __init__(self, rendezvous: Rendezvous, device: torch.device, timeout_s: float) -> None:
        self.rank, self.num_ranks = rendezvous.place.rank, rendezvous.place.num_ranks
        self._rendezvous = rendezvous  # rank 0's serves the others
        self._timeout = timedelta(seconds=timeout_s)
        self._messages: Any = None
        self._tensors: Any = None
        """The same as ``_messages`` on a CPU."""
        self._is_on_gpu = device.type == "cuda"
        self._gather_options, self._idle_options = GatherOptions(), BroadcastOptions()
        self._gather_options.rootRank = self._idle_options.rootRank = 0
        self._idle_options.timeout = _NO_DEADLINE
        with self._failures_named("forming the group"):
            self._messages = new_gloo_group(rendezvous, self._timeout)
            self._tensors = new_nccl_group(rendezvous, self._timeout) if self._is_on_gpu else self._messages

    def send(self, words: NDArray[np.int32]) -> None:
        first = torch.zeros(_MESSAGE_WORDS, dtype=torch.int32)
        first[0] = len(words)
        sent = torch.from_numpy(words)
        num_first = min(len(words), _MESSAGE_WORDS - 1)
        first[1 : 1 + num_first] = sent[:num_first]
        self._check_open()
        with self._failures_named("message"):
            self._messages.broadcast(first, 0).wait()
            if num_first < len(words):
                self._messages.broadcast(sent[num_first:], 0).wait()

    def receive(self) -> NDArray[np.int32]:
        first = torch.empty(_MESSAGE_WORDS, dtype=torch.int32)
        self._check_open()
        with self._failures_named("message"):
            self._messages.broadcast([first], self._idle_options).wait()
            num_words = int(first[0])
            words = torch.empty(num_words, dtype=torch.int32)
            num_first = min(num_words, _MESSAGE_WORDS - 1)
            words[:num_first] = first[1 : 1 + num_first]
            if num_first < num_words:
                self._messages.broadcast(words[num_first:], 0).wait()
        return words.numpy()

    def broadcast(self, tensor: torch.Tensor) -> None:
        self._check_open()
        with self._failures_named("broadcast"):
            self._tensors.broadcast(tensor, 0).wait()

    def all_reduce(self, tensor: torch.Tensor) -> None:
        self._check_open()
        with self._failures_named("all-reduce"):
            self._tensors.allreduce([tensor]).wait()

    def gather(self, tensor: torch.Tensor) -> list[torch.Tensor]:
        parts = [torch.empty_like(tensor) for _ in range(self.num_ranks)] if self.rank == 0 else []
        self._check_open()
        with self._failures_named("gather"):
            self._tensors.gather([parts] if parts else [], [tensor], self._gather_options).wait()
            if self._is_on_gpu:
                # Gloo is done when an operation returns. NCCL only has it in its queue, and breaks it off without a
                # word where a rank is lost.
                torch.cuda.current_stream().synchronize()
                self._messages.barrier(BarrierOptions()).wait()
        return parts

    def close(self) -> None:
        groups = {id(group): group for group in (self._messages, self._tensors) if group is not None}
        self._messages = self._tensors = None
        for group in groups.values():
            group.abort()

    def _check_open(self) -> None:
        if self._messages is None:
            raise WorkerFailedError(
                f"tensor parallelism, rank {self.rank} of {self.num_ranks}: it is closed, or a rank was lost before; "
                "make a new engine"
            )

    def _failures_named(self, operation: str) -> AbstractContextManager[None]:
        return failures_named(
            self._rendezvous, operation, close=self.close, culprits=lambda: "a rank is lost or does not answer"
        )
