"""What one rank holds: its rows of every tensor, those of the trained networks in one flat vector.

Legend: n elements of the rank's rows, each parameter's beginning at a multiple of 64 bytes.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import groupby

import torch
from torch import Tensor, nn

from rlserve.trainers.backends.fully_sharded.layout import REFERENCE, Cut, Layout, ShardedTensor
from rlserve.trainers.backends.pytorch.parameters import Place
from rlserve.trainers.elastic.holdings import ALIGNMENT
from rlserve.trainers.elastic.intervals import Interval


class RankShards:
    """Parameters of one cut. The optimizer sees the vector as it sees that of a trainer which holds everything."""

    def __init__(self, layout: Layout, cut: Cut, device: torch.device) -> None:
        """All zeros."""
        self.layout = layout
        self.cut = cut
        self.segments: dict[str, slice] = {}
        """Of the vector, by trained network."""
        self._places: dict[str, Interval] = {}
        self.vector = self._lay_out(layout.trained, device)
        """[n] float32"""
        self.reference = self._lay_out(layout.of(REFERENCE), device)
        """The same of the reference; nothing where there is none."""

    def named_places(self, network: str) -> list[tuple[str, Place]]:
        """Where the rows of a trained network's parameters stand in the vector, with the parameters' names. These are
        whole, and empty."""
        return [
            (
                tensor.name.removeprefix(f"{network}."),
                Place(parameter=nn.Parameter(torch.empty(tensor.shape, device="meta")), elements=self.place(tensor)),
            )
            for tensor in self.layout.of(network)
        ]

    def place(self, tensor: ShardedTensor) -> Interval:
        """Where this rank's rows of a tensor stand in the vector, or in that of the reference."""
        return self._places[tensor.name]

    def rows(self, tensor: ShardedTensor, vector: Tensor | None = None, *, offset: int = 0) -> Tensor:
        """This rank's rows of a tensor, [rows, …]: the parameter's, or those of another vector of this layout, or of
        the part of one that begins at ``offset``. A view."""
        if vector is None:
            vector = self.reference if tensor.network == REFERENCE else self.vector
        place = self.place(tensor)
        return vector[place.first - offset : place.end - offset].view(-1, *tensor.shape[1:])

    def move(self, device: torch.device) -> None:
        """To another device."""
        self.vector, self.reference = self.vector.to(device), self.reference.to(device)

    def _lay_out(self, tensors: Iterable[ShardedTensor], device: torch.device) -> Tensor:
        offset = 0
        for network, parameters in groupby(tensors, key=lambda tensor: tensor.network):
            first = offset
            for tensor in parameters:
                num_elements = tensor.part(self.cut).num_elements
                self._places[tensor.name] = Interval(offset, offset + num_elements)
                offset += -(-num_elements // ALIGNMENT) * ALIGNMENT
            if network != REFERENCE:
                self.segments[network] = slice(first, offset)
        return torch.zeros(offset, device=device)
