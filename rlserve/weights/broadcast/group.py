"""A process group that one sender broadcasts bytes to, in buckets: NCCL between GPUs, gloo between CPUs."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from contextlib import AbstractContextManager
from datetime import timedelta
from typing import Any, Literal

import torch

from rlserve.distributed.base import RankPlace
from rlserve.distributed.process_groups import failures_named, finish_on_host, new_gloo_group, new_nccl_group
from rlserve.distributed.rendezvous import Rendezvous
from rlserve.errors import DeadlineExceededError

Backend = Literal["nccl", "gloo"]
SENDER = "the sender"
_BUCKET_BYTES = 64 * 2**20


class BroadcastGroup:
    """One rank of it. A member that is lost, or late, breaks the group for all, and is named."""

    def __init__(
        self,
        place: RankPlace,
        members: Sequence[str],
        *,
        backend: Backend,
        timeout_s: float,
        listening: socket.socket | None = None,
    ) -> None:
        """Meet the others.

        Args:
            place: of this rank; 0 is the sender.
            members: the receivers' names, from rank 1 on.
            backend: ``nccl`` is on the current GPU.
            timeout_s: how long all wait for each, to come and in each bucket.
            listening: what the sender serves the meeting on.

        Raises:
            DeadlineExceededError: not all came; names who did not.
            WorkerFailedError: one came and was lost.
        """
        self.members = tuple(members)
        self._names = (SENDER, *self.members)
        self._timeout = timedelta(seconds=timeout_s)
        self._device = torch.device("cpu" if backend == "gloo" else "cuda")
        self._process_group: Any = None
        self._buffer: torch.Tensor | None = None
        try:
            self._rendezvous = Rendezvous(
                place, group=f"weights for {', '.join(members)}", timeout_s=timeout_s, listening=listening
            )
        except DeadlineExceededError as error:
            names = ", ".join(f"rank {rank} is {name}" for rank, name in enumerate(self._names))
            raise DeadlineExceededError(f"{error} ({names})") from error
        new_group = new_gloo_group if backend == "gloo" else new_nccl_group
        with self._failures_named("forming the group"):
            self._process_group = new_group(self._rendezvous, self._timeout)

    def broadcast(self, payload: torch.Tensor) -> None:
        """Fill ``payload``, [num_bytes] uint8 in host memory, with the sender's, which is as long and stays as it is.

        Raises:
            WorkerFailedError: a member is lost or late; the group is closed.
        """
        with self._failures_named("broadcast"):
            for start in range(0, payload.nbytes, _BUCKET_BYTES):
                self._broadcast(payload[start : start + _BUCKET_BYTES])

    def close(self) -> None:
        """Leave; the others fail if they wait."""
        if self._process_group is not None:
            self._process_group.abort()
            self._process_group = None

    def _broadcast(self, part: torch.Tensor) -> None:
        is_sender = self._rendezvous.place.rank == 0
        if self._device.type == "cpu":
            finish_on_host(self._process_group.broadcast(part, 0), self._timeout)
            return
        if self._buffer is None:
            self._buffer = torch.empty(_BUCKET_BYTES, dtype=torch.uint8, device=self._device)
        bucket = self._buffer[: part.nbytes]
        if is_sender:
            bucket.copy_(part)
        finish_on_host(self._process_group.broadcast(bucket, 0), self._timeout)
        if not is_sender:
            part.copy_(bucket)

    def _failures_named(self, operation: str) -> AbstractContextManager[None]:
        return failures_named(self._rendezvous, operation, close=self.close, culprits=self._culprits)

    def _culprits(self) -> str:
        silent = self._rendezvous.silent_ranks()
        return f"no answer from {', '.join(self._names[rank] for rank in silent)}" if silent else "all still answer"
