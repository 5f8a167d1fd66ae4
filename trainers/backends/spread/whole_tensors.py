"""The policy for engines and checkpoints: each rank gets some of its tensors whole, in host memory, and none gets all.

::

    rank 0   parts of a, b, c, d ──┐   ┌── a and d, whole
                                   ├───┤
    rank 1   parts of a, b, c, d ──┘   └── b and c, whole

Parts travel in buckets to the one rank that collects their tensor, so no device holds more of one than its part.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rlserve.trainers.elastic.base import Group
from rlserve.trainers.elastic.exchange import carry_out
from rlserve.trainers.elastic.intervals import Interval, Intervals
from rlserve.trainers.elastic.transfers import Transfer


@dataclass(frozen=True, kw_only=True)
class SpreadTensor:
    """One tensor of the policy, of which each rank has a part."""

    name: str
    """In the policy."""
    shape: torch.Size
    elements: Interval
    """Of all tensors, laid end to end."""
    held: tuple[Intervals, ...]
    """Of these elements, those that each rank has: together all, each once."""


def deal_out(tensors: Sequence[SpreadTensor], num_ranks: int) -> list[list[SpreadTensor]]:
    """Which tensors each rank gets, in the order of ``tensors``: pure. The largest are dealt out first, each to the
    rank that has the fewest elements so far, so no two ranks differ by more than one tensor has."""
    owners: dict[str, int] = {}
    num_elements = [0] * num_ranks
    for tensor in sorted(tensors, key=lambda tensor: -tensor.elements.num_elements):
        owners[tensor.name] = owner = num_elements.index(min(num_elements))
        num_elements[owner] += tensor.elements.num_elements
    return [[tensor for tensor in tensors if owners[tensor.name] == rank] for rank in range(num_ranks)]


def gather_whole_tensors(
    tensors: Sequence[SpreadTensor], read: Callable[[Interval], Tensor], group: Group, device: torch.device
) -> dict[str, Tensor]:
    """This rank's tensors of the policy, by name, in host memory. All ranks call this together.

    Args:
        tensors: the policy's, in the order of their elements.
        read: gives some float32 elements of one tensor that this rank has, on any device.
        device: of the group.

    Raises:
        WorkerFailedError: a rank was lost.
    """
    dealt = deal_out(tensors, group.num_ranks)
    found = {tensor.name: torch.empty(tensor.shape) for tensor in dealt[group.rank]}
    firsts = [tensor.elements.first for tensor in tensors]

    def write(elements: Interval, values: Tensor) -> None:
        tensor = tensors[bisect_right(firsts, elements.first) - 1]
        first = elements.first - tensor.elements.first
        found[tensor.name].view(-1)[first : first + elements.num_elements].copy_(values)

    plan: list[Transfer] = []
    for owner, of_owner in enumerate(dealt):
        for tensor in of_owner:
            for rank, held in enumerate(tensor.held):
                for elements in held:
                    if rank != owner:
                        plan.append(Transfer(source=rank, destination=owner, elements=elements))
                    elif rank == group.rank:
                        write(elements, read(elements))
    carry_out(group, plan, read, write, device=device)
    return found
