"""The default group of torch.distributed, in which DeepSpeed communicates, on the ranks of one of our groups.

DeepSpeed finds it, and keeps it, in variables of the process. So there is one at a time, and nothing that was made with
it outlives it.
"""

from __future__ import annotations

import contextlib
import os
from datetime import timedelta
from textwrap import shorten
from typing import Any

import torch
from torch import distributed
from torch.distributed import HashStore, PrefixStore, ProcessGroupGloo  # type: ignore[attr-defined]

from rlserve.distributed.addresses import address_towards
from rlserve.errors import WorkerFailedError
from rlserve.trainers.backends.deepspeed.importing import import_deepspeed
from rlserve.trainers.elastic.base import Group
from rlserve.trainers.elastic.distributed import DistributedGroup

_GLOO = "rlserve_gloo"
"""Our name of a gloo that listens on the address that faces rank 0."""


class World:
    """Of the ranks of a group. A failure of one is one of the other."""

    def __init__(self, group: Group) -> None:
        self._group = group
        self._device: torch.device | None = None
        """Of an open one."""

    def open(self, *, timeout_s: float, device: torch.device) -> None:
        """Form it; all ranks together.

        Raises:
            RuntimeError: a rank failed or did not answer.
        """
        group, is_gpu = self._group, device.type == "cuda"
        os.environ["LOCAL_RANK"] = str(torch.cuda.current_device() if is_gpu else 0)
        deepspeed = import_deepspeed(device.type)
        if distributed.is_initialized():  # another trainer's, of this process
            _destroy(device)
        place = group.rendezvous.place if isinstance(group, DistributedGroup) else None
        if not is_gpu:
            _register_gloo(address_towards(place.host, place.port) if place is not None else "127.0.0.1")
        store = PrefixStore("deepspeed", group.rendezvous.store) if isinstance(group, DistributedGroup) else HashStore()
        self._device = device
        distributed.init_process_group(
            backend="nccl" if is_gpu else _GLOO,
            store=store,
            rank=group.rank,
            world_size=group.num_ranks,
            timeout=timedelta(seconds=timeout_s),
        )
        deepspeed.init_distributed(auto_mpi_discovery=False, verbose=False)

    def failure(self, operation: str, error: RuntimeError) -> RuntimeError:
        """What to raise where ``operation`` has failed, once this rank has closed all: peers that wait for it fail
        then, and report at once. The error itself, unless it is of the group."""
        if not (isinstance(self._group, DistributedGroup) and _is_of_communication(error)):
            return error
        place = self._group.rendezvous.place
        return WorkerFailedError(
            f"{self._group.rendezvous.group}, rank {place.rank} of {place.num_ranks}: {operation} failed, "
            f"{self._group.culprits()} ({shorten(str(error), 160)})"
        )

    def close(self) -> None:
        """End it. Gloo's connections are closed once nothing is there any more that was made with it."""
        if self._device is not None:
            _destroy(self._device)
            self._device = None


def _register_gloo(address: str) -> None:
    def create(store: Any, rank: int, num_ranks: int, timeout: timedelta) -> Any:
        options = ProcessGroupGloo._Options()  # type: ignore[attr-defined]
        options._devices = [ProcessGroupGloo.create_device(hostname=address)]
        options._timeout = timeout
        return ProcessGroupGloo(store, rank, num_ranks, options)

    distributed.Backend._plugins.pop(_GLOO.upper(), None)
    distributed.Backend.register_backend(_GLOO, create, devices=["cpu"])


def _destroy(device: torch.device) -> None:
    """Let torch and DeepSpeed forget all groups, in the middle of something or not."""
    if not distributed.is_initialized():  # it was never whole
        return
    for group in list(distributed.distributed_c10d._world.pg_map):
        with contextlib.suppress(RuntimeError):  # it is broken already
            group._get_backend(device).abort()
    comm = import_deepspeed(device.type).comm
    with contextlib.suppress(RuntimeError):
        comm.destroy_process_group()
    comm.comm.cdb = None


def _is_of_communication(error: RuntimeError) -> bool:
    """Whether it comes from a process group, and not from what is computed."""
    return isinstance(error, distributed.DistError) or any(name in str(error) for name in ("gloo", "nccl", "NCCL"))
