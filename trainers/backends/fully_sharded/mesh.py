"""The ranks of a group as ``fully_shard`` knows them: a device mesh over torch's default process group.

That group knows ranks and connects nobody: the collectives of ``fully_shard`` go through the trainers' own group, so
that each has its deadline, its failure names the ranks that did not answer, and a rank that leaves is noticed at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard

from rlserve.trainers.elastic.base import Group

_BACKEND = "trainers"


class Mesh:
    """All ranks of a group, until it is closed. One at a time in a process."""

    def __init__(self, group: Group, device: torch.device) -> None:
        if _BACKEND not in distributed.Backend.backend_list:
            distributed.Backend.register_backend(_BACKEND, _ranks, devices=["cpu", "cuda"])
        distributed.init_process_group(
            _BACKEND,
            store=distributed.HashStore(),  # type: ignore[attr-defined]
            rank=group.rank,
            world_size=group.num_ranks,
        )
        self.all_gather = AllGather(group)
        self.reduce_scatter = ReduceScatter(group)
        self.devices = init_device_mesh(device.type, (group.num_ranks,))

    def sharded(self, rows: Tensor, shape: torch.Size) -> DTensor:
        """A tensor of ``shape`` of which this rank has ``rows``, as a view of them."""
        stride = torch.empty(shape, device="meta").stride()
        return DTensor.from_local(rows, self.devices, [Shard(0)], run_check=False, shape=shape, stride=stride)

    def close(self) -> None:
        """Let another be made."""
        distributed.destroy_process_group()


class _Ranks(distributed.ProcessGroup):
    """Without any operation. torch sets and asks for a group's name, which it keeps of its own groups alone."""

    _name = ""

    def getBackendName(self) -> str:
        return _BACKEND

    def _set_group_name(self, name: str) -> None:
        self._name = name

    @property
    def group_name(self) -> str:  # type: ignore[override]
        return self._name


def _ranks(_store: Any, rank: int, num_ranks: int, _timeout: Any) -> _Ranks:
    return _Ranks(rank, num_ranks)  # type: ignore[call-arg]


class _Collective:
    def __init__(self, group: Group) -> None:
        self._group = group

    def allocate(self, size: Sequence[int], *, dtype: torch.dtype, device: torch.device) -> Tensor:
        """Memory for what goes in or comes out."""
        return torch.empty(size, dtype=dtype, device=device)


class AllGather(_Collective):
    """As ``fully_shard`` takes it; returns when all is there, or is sure to be before what follows on the stream."""

    def __call__(self, output_tensor: Tensor, input_tensor: Tensor, group: Any, async_op: bool = False) -> None:
        """Fill ``output_tensor`` with every rank's ``input_tensor``."""
        self._group.all_gather_into(output_tensor, input_tensor)


class ReduceScatter(_Collective):
    """Likewise. Gradients are sums over ranks, never means."""

    def __call__(
        self, output_tensor: Tensor, input_tensor: Tensor, group: Any, op: Any, async_op: bool = False
    ) -> None:
        """Fill ``output_tensor`` with this rank's part of the sum of all ``input_tensor``."""
        self._group.reduce_scatter_into(output_tensor, input_tensor)
