"""A group of processes on torch.distributed: gloo between CPUs, NCCL between GPUs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor

from rlserve.distributed.process_groups import failures_named, finish_on_host, new_gloo_group, new_nccl_group
from rlserve.distributed.rendezvous import Rendezvous
from rlserve.errors import WorkerFailedError
from rlserve.trainers.base import Membership
from rlserve.trainers.elastic.base import Group, LocalGroup

_BUCKET_BYTES = 512 * 2**20


def join_group(
    membership: Membership, *, timeout_s: float, device: torch.device, check: Callable[[], None] = lambda: None
) -> Group:
    """Form the group of ``membership``; alone, no store and no process group are made. ``check`` is called again and
    again while this waits for the others, and may raise to give up.

    Raises:
        DeadlineExceededError: not all members came within ``timeout_s``.
        WorkerFailedError: a member came and was lost again while the group formed.
    """
    if membership.num_ranks == 1:
        return LocalGroup()
    name = f"trainer group {membership.generation}"
    rendezvous = Rendezvous(membership, group=name, timeout_s=timeout_s, check=check)
    return DistributedGroup(rendezvous, timeout_s=timeout_s, device=device)


class DistributedGroup(Group):
    """See ``Group``. A rank that fails, or waits past the deadline, breaks the group for all."""

    def __init__(
        self, rendezvous: Rendezvous, *, timeout_s: float, device: torch.device, name: str = "trainers"
    ) -> None:
        """``name`` tells apart the groups that are formed by one rendezvous."""
        self.rank = rendezvous.place.rank
        self.num_ranks = rendezvous.place.num_ranks
        self.rendezvous = rendezvous
        self._timeout = timedelta(seconds=timeout_s)
        self._device = device
        self._second: DistributedGroup | None = None
        self._is_interrupted = False
        self._wait_first: Callable[[], None] | None = None
        self._process_group: Any = None
        with self._failures_named("forming the group"):
            new_group = new_nccl_group if device.type == "cuda" else new_gloo_group
            self._process_group = new_group(rendezvous, self._timeout, name=name)

    def broadcast(self, tensor: Tensor) -> None:
        flat = tensor.view(-1)
        bucket_length = max(1, _BUCKET_BYTES // tensor.element_size())
        with self._failures_named("broadcast"):
            for bucket in torch.split(flat, bucket_length):
                self._finish(self._open_process_group().broadcast(bucket, 0))

    def all_gather(self, tensor: Tensor) -> list[Tensor]:
        gathered = [torch.empty_like(tensor) for _ in range(self.num_ranks)]
        with self._failures_named("all-gather"):
            self._finish(self._open_process_group().allgather([gathered], [tensor.contiguous()]))
        return gathered

    def all_to_all(self, tensor: Tensor, send_sizes: Sequence[int], receive_sizes: Sequence[int]) -> Tensor:
        received = tensor.new_empty(sum(receive_sizes))
        with self._failures_named("all-to-all"):
            work = self._open_process_group().alltoall_base(received, tensor, list(receive_sizes), list(send_sizes))
            self._finish(work)
        return received

    def all_gather_into(self, gathered: Tensor, tensor: Tensor) -> None:
        with self._failures_named("all-gather"):
            self._finish(self._open_process_group()._allgather_base(gathered, tensor))

    def reduce_scatter_into(self, summed: Tensor, tensor: Tensor) -> None:
        with self._failures_named("reduce-scatter"):
            self._finish(self._open_process_group()._reduce_scatter_base(summed, tensor))

    def close(self) -> None:
        second, self._second = self._second, None
        if second is not None:
            second.close()
        if self._process_group is not None:
            self._process_group.abort()
            self._process_group = None

    def connect_again(self) -> None:
        timeout_s = self._timeout.total_seconds()
        self._second = DistributedGroup(self.rendezvous, timeout_s=timeout_s, device=self._device, name="second")

    def take_second(self) -> Group | None:
        second, self._second = self._second, None
        return second

    def wait_first(self, wait: Callable[[], None]) -> None:
        self._wait_first = wait

    def interrupt(self) -> None:
        """Gloo ends no operation before its deadline, unless a rank leaves or is lost: it is up to the other ranks, who
        are interrupted as well or go on with what they do."""
        self._is_interrupted = True
        process_group = self._process_group
        if process_group is not None:
            process_group.abort()

    def _open_process_group(self) -> Any:
        assert self._process_group is not None, "this group is closed: resize into a new one"
        if self._is_interrupted:
            raise WorkerFailedError(f"{self.rendezvous.group}: this rank has left")
        wait, self._wait_first = self._wait_first, None
        if wait is not None:
            wait()
        return self._process_group

    def _finish(self, work: Any) -> None:
        if self._device.type == "cuda":
            finish_on_host(work, self._timeout)
        else:
            work.wait(self._timeout)

    @contextmanager
    def _failures_named(self, operation: str) -> Iterator[None]:
        self.is_waiting = True
        try:
            with failures_named(self.rendezvous, operation, close=self.close, culprits=self.culprits):
                yield
        finally:
            self.is_waiting = False

    def culprits(self) -> str:
        """After a failure, once the group is closed: who is to blame."""
        if self._is_interrupted:
            return "this rank has left"
        silent = self.rendezvous.silent_ranks()
        return f"no answer from rank {', '.join(map(str, silent))}" if silent else "every rank still answers"
