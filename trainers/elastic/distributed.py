"""A group of processes on torch.distributed: gloo between CPUs, NCCL between GPUs.

The process groups are made directly, not through ``init_process_group``, so that a group belongs to its owner,
several can follow one another in a process, and nothing global is touched.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from textwrap import shorten
from typing import Any

import torch
from torch import Tensor
from torch.distributed import PrefixStore, ProcessGroupGloo  # type: ignore[attr-defined]

from rlserve.errors import WorkerFailedError
from rlserve.trainers.base import Membership
from rlserve.trainers.elastic.base import Group, LocalGroup
from rlserve.trainers.elastic.rendezvous import Rendezvous

logger = logging.getLogger(__name__)

_BUCKET_BYTES = 512 * 2**20


def join_group(membership: Membership, *, timeout_s: float, device: torch.device) -> Group:
    """Form the group of ``membership``; alone, no store and no process group are made.

    Raises:
        DeadlineExceededError: not all members came within ``timeout_s``.
        WorkerFailedError: a member came and was lost again while the group formed.
    """
    if membership.world_size == 1:
        return LocalGroup()
    return DistributedGroup(Rendezvous(membership, timeout_s), timeout_s=timeout_s, device=device)


class DistributedGroup(Group):
    """See ``Group``. A rank that fails, or waits past the deadline, breaks the group for all."""

    def __init__(self, rendezvous: Rendezvous, *, timeout_s: float, device: torch.device) -> None:
        membership = rendezvous.membership
        self.rank = membership.rank
        self.world_size = membership.world_size
        self._rendezvous = rendezvous
        self._timeout = timedelta(seconds=timeout_s)
        self._process_group: Any = None
        with self._failures_named("forming the group"):
            self._process_group = self._new_process_group(membership, device)

    def broadcast(self, tensor: Tensor) -> None:
        flat = tensor.view(-1)
        bucket_length = max(1, _BUCKET_BYTES // tensor.element_size())
        with self._failures_named("broadcast"):
            for bucket in torch.split(flat, bucket_length):
                self._open_process_group().broadcast(bucket, 0).wait(self._timeout)

    def all_gather(self, tensor: Tensor) -> list[Tensor]:
        gathered = [torch.empty_like(tensor) for _ in range(self.world_size)]
        with self._failures_named("all-gather"):
            self._open_process_group().allgather([gathered], [tensor.contiguous()]).wait(self._timeout)
        return gathered

    def all_to_all(self, tensor: Tensor, send_sizes: Sequence[int], receive_sizes: Sequence[int]) -> Tensor:
        received = tensor.new_empty(sum(receive_sizes))
        with self._failures_named("all-to-all"):
            work = self._open_process_group().alltoall_base(received, tensor, list(receive_sizes), list(send_sizes))
            work.wait(self._timeout)
        return received

    def close(self) -> None:
        if self._process_group is not None:
            self._process_group.abort()
            self._process_group = None

    def _new_process_group(self, membership: Membership, device: torch.device) -> Any:
        store = PrefixStore(f"{membership.generation}/transport", self._rendezvous.store)
        if device.type == "cuda":
            from torch.distributed import ProcessGroupNCCL  # absent from CPU builds of torch

            # Break the group where a rank is lost, and do not end the processes that wait for it (the default).
            os.environ.setdefault("TORCH_NCCL_ASYNC_ERROR_HANDLING", "2")
            nccl_options = ProcessGroupNCCL.Options()
            nccl_options._timeout = self._timeout
            return ProcessGroupNCCL(store, self.rank, self.world_size, nccl_options)
        options = ProcessGroupGloo._Options()  # type: ignore[attr-defined]
        options._devices = [ProcessGroupGloo.create_device(hostname=_own_address(membership))]
        options._timeout = self._timeout
        return ProcessGroupGloo(store, self.rank, self.world_size, options)

    def _open_process_group(self) -> Any:
        assert self._process_group is not None, "this group is closed: resize into a new one"
        return self._process_group

    @contextmanager
    def _failures_named(self, operation: str) -> Iterator[None]:
        """Turn a failure of the transport into an error that names the ranks that do not answer."""
        try:
            yield
        except RuntimeError as error:
            # Closing first makes the peers that still wait for this rank fail, and report, at once.
            self.close()
            silent = self._rendezvous.silent_ranks()
            culprits = f"no answer from rank {', '.join(map(str, silent))}" if silent else "every rank still answers"
            raise WorkerFailedError(
                f"trainer group {self._rendezvous.membership.generation}, rank {self.rank} of {self.world_size}: "
                f"{operation} failed, {culprits} ({shorten(str(error), 160)})"
            ) from error


def _own_address(membership: Membership) -> str:
    """The address of this machine that faces rank 0, so that a group on loopback stays on loopback."""
    family, kind, protocol, _, peer = socket.getaddrinfo(membership.host, membership.port, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind, protocol) as probe:
        probe.connect(peer)
        address: str = probe.getsockname()[0]
    return address
