"""Which elements of each tensor a rank holds: pure.

``fully_shard`` cuts every parameter along its first dimension, into as many parts of equal length as there are ranks,
of which the last may be shorter, or empty::

    rows of a tensor          0 1 2 3 4 5 6        of 4 ranks    rank 0   0 1
                                                                 rank 1   2 3
                                                                 rank 2   4 5
                                                                 rank 3   6

All tensors are thought of as laid end to end, so that one interval says which elements of which tensor.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from rlserve.trainers.backends.base import POLICY
from rlserve.trainers.backends.spread.whole_tensors import SpreadTensor
from rlserve.trainers.elastic.intervals import Interval, Intervals, intersection

REFERENCE = "reference"
"""The network that is not trained."""


@dataclass(frozen=True, kw_only=True)
class Cut:
    """A rank's part of every tensor."""

    rank: int
    num_ranks: int


@dataclass(frozen=True, kw_only=True)
class ShardedTensor:
    """One tensor of which each rank has some rows."""

    name: str
    """As in a saved state: network, dot, parameter."""
    network: str
    shape: torch.Size
    elements: Interval
    """Of all tensors laid end to end."""

    def rows(self, cut: Cut) -> Interval:
        """Which of its rows."""
        length = -(-self.shape[0] // cut.num_ranks)
        first = min(cut.rank * length, self.shape[0])
        return Interval(first, min(first + length, self.shape[0]))

    def part(self, cut: Cut) -> Interval:
        """The elements of these rows, counted from the tensor's own first."""
        row_length, rows = self.shape[1:].numel(), self.rows(cut)
        return Interval(rows.first * row_length, rows.end * row_length)

    def held(self, cut: Cut | None) -> Intervals:
        """The same as elements of all tensors; nothing where there is no cut."""
        if cut is None:
            return ()
        part, first = self.part(cut), self.elements.first
        return (Interval(first + part.first, first + part.end),) if part.num_elements else ()


class Layout:
    """All tensors of some networks, in order."""

    def __init__(self, shapes: Mapping[str, Mapping[str, torch.Size]]) -> None:
        """``shapes`` of the parameters of each network."""
        tensors, first = [], 0
        for network, parameters in shapes.items():
            for name, shape in parameters.items():
                elements = Interval(first, first + shape.numel())
                tensors.append(ShardedTensor(name=f"{network}.{name}", network=network, shape=shape, elements=elements))
                first = elements.end
        self.tensors: Sequence[ShardedTensor] = tuple(tensors)
        self._firsts = [tensor.elements.first for tensor in tensors]

    @property
    def trained(self) -> Sequence[ShardedTensor]:
        """All but the reference's."""
        return [tensor for tensor in self.tensors if tensor.network != REFERENCE]

    def of(self, network: str) -> Sequence[ShardedTensor]:
        """Of one network."""
        return [tensor for tensor in self.tensors if tensor.network == network]

    def spread_policy(self, num_ranks: int) -> list[SpreadTensor]:
        """The policy's tensors, with what each rank of a group has of them."""
        cuts = [Cut(rank=rank, num_ranks=num_ranks) for rank in range(num_ranks)]
        return [
            SpreadTensor(
                name=policy_name(tensor),
                shape=tensor.shape,
                elements=tensor.elements,
                held=tuple(tensor.held(cut) for cut in cuts),
            )
            for tensor in self.of(POLICY)
        ]

    def at(self, elements: Interval) -> tuple[ShardedTensor, Interval]:
        """The one tensor that some elements lie in, and which of its own they are."""
        tensor = self.tensors[bisect_right(self._firsts, elements.first) - 1]
        assert intersection(elements, tensor.elements) == elements
        return tensor, Interval(elements.first - tensor.elements.first, elements.end - tensor.elements.first)


def policy_name(tensor: ShardedTensor) -> str:
    """Name of a tensor in the policy itself."""
    return tensor.name.removeprefix(f"{POLICY}.")
