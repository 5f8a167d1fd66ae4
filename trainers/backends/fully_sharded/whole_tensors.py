"""The policy for engines and checkpoints: each rank gets some of its tensors whole, in host memory, and none gets all.

::

    rank 0   rows of a, b, c, d ──┐   ┌── a and d, whole
                                  ├───┤
    rank 1   rows of a, b, c, d ──┘   └── b and c, whole

Rows travel in buckets to the one rank that collects their tensor, so no device holds more of one than its rows.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rlserve.trainers.backends.base import POLICY
from rlserve.trainers.backends.fully_sharded.layout import Cut, ShardedTensor
from rlserve.trainers.backends.fully_sharded.state import ShardedState
from rlserve.trainers.elastic.base import Group
from rlserve.trainers.elastic.exchange import carry_out
from rlserve.trainers.elastic.intervals import Interval
from rlserve.trainers.elastic.transfers import Transfer


def deal_out(tensors: Sequence[ShardedTensor], num_ranks: int) -> list[list[ShardedTensor]]:
    """Which tensors each rank gets, in the order of ``tensors``: pure. The largest are dealt out first, each to the
    rank that has the fewest elements so far, so no two ranks differ by more than one tensor has."""
    owners: dict[str, int] = {}
    num_elements = [0] * num_ranks
    for tensor in sorted(tensors, key=lambda tensor: -tensor.elements.num_elements):
        owners[tensor.name] = owner = num_elements.index(min(num_elements))
        num_elements[owner] += tensor.elements.num_elements
    return [[tensor for tensor in tensors if owners[tensor.name] == rank] for rank in range(num_ranks)]


def policy_name(tensor: ShardedTensor) -> str:
    """Name of a tensor in the policy itself."""
    return tensor.name.removeprefix(f"{POLICY}.")


def gather_whole_tensors(state: ShardedState, group: Group, device: torch.device) -> dict[str, Tensor]:
    """This rank's tensors of the policy, in host memory, by their names in the policy. All ranks call this together.

    Raises:
        WorkerFailedError: a rank was lost.
    """
    dealt = deal_out(state.layout.of(POLICY), group.num_ranks)
    found = {tensor.name: torch.empty(tensor.shape) for tensor in dealt[group.rank]}

    def write(elements: Interval, values: Tensor) -> None:
        tensor, part = state.layout.at(elements)
        found[tensor.name].view(-1)[part.elements].copy_(values)

    plan: list[Transfer] = []
    for owner, tensors in enumerate(dealt):
        for tensor in tensors:
            for rank in range(group.num_ranks):
                for elements in tensor.held(Cut(rank=rank, num_ranks=group.num_ranks)):
                    if rank != owner:
                        plan.append(Transfer(source=rank, destination=owner, elements=elements))
                    elif rank == group.rank:
                        write(elements, state.read(elements))
    carry_out(group, plan, state.read, write, device=device)
    return {policy_name(tensor): found[tensor.name] for tensor in dealt[group.rank]}
