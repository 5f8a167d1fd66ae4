"""All parameters of some modules in one flat float32 vector.

The modules' parameters become views of the vector, so an optimizer step, a snapshot, a broadcast and a reduction
are each one operation on one tensor. Every parameter begins at a multiple of 64 bytes, as a tensor of its own
would; the gaps are zero and stay zero.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

_ALIGNMENT = 16
"""Elements: 64 bytes."""


@dataclass(frozen=True, kw_only=True)
class _Place:
    """Where one parameter stands in the vector."""

    parameter: nn.Parameter
    offset: int

    def view(self, vector: Tensor) -> Tensor:
        return vector[self.offset : self.offset + self.parameter.numel()].view(self.parameter.shape)


class FlatParameters:
    """The parameters of named modules, one segment of the vector for each module. Tied parameters occur once."""

    def __init__(self, modules: Mapping[str, nn.Module], device: torch.device) -> None:
        self.segments: dict[str, slice] = {}
        self._places: dict[str, dict[str, _Place]] = {}
        offset = 0
        for module_name, module in modules.items():
            module.to(device)
            first = offset
            self._places[module_name] = {}
            for name, parameter in module.named_parameters():
                self._places[module_name][name] = _Place(parameter=parameter, offset=offset)
                offset += -(-parameter.numel() // _ALIGNMENT) * _ALIGNMENT
            self.segments[module_name] = slice(first, offset)
        self.vector = torch.zeros(offset, device=device)
        with torch.no_grad():
            for place in self._all_places():
                place.view(self.vector).copy_(place.parameter)
                place.parameter.data = place.view(self.vector)

    def views(self, module_name: str, vector: Tensor) -> dict[str, Tensor]:
        """Any vector of this layout (parameters, moments, gradients), taken apart by the names of one module."""
        return {name: place.view(vector) for name, place in self._places[module_name].items()}

    def collect_gradients_in(self, vector: Tensor) -> None:
        """Let ``backward`` add to ``vector`` from now on."""
        for place in self._all_places():
            place.parameter.grad = place.view(vector)

    def drop_gradients(self) -> None:
        """Forget the vector that gradients were added to."""
        for place in self._all_places():
            place.parameter.grad = None

    def _all_places(self) -> list[_Place]:
        return [place for places in self._places.values() for place in places.values()]
