"""All parameters of some modules that are trained, in one flat float32 vector.

The modules' parameters become views of the vector, so an optimizer step, a snapshot, a broadcast and a reduction
are each one operation on one tensor. Every parameter begins at a multiple of 64 bytes, as a tensor of its own
would; the gaps are zero and stay zero. Frozen parameters, which modules may share, stay where they are.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rlserve.trainers.elastic.holdings import ALIGNMENT
from rlserve.trainers.elastic.intervals import Interval


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where one parameter stands in the vector."""

    parameter: nn.Parameter
    elements: Interval

    def view(self, vector: Tensor, *, offset: int = 0) -> Tensor:
        """The parameter's part of a vector, or of a part that begins at ``offset``."""
        return vector[self.elements.first - offset : self.elements.end - offset].view(self.parameter.shape)


class FlatParameters:
    """The parameters of named modules, one segment of the vector for each module. Tied parameters occur once, and
    frozen ones, which need no gradient, not at all."""

    def __init__(self, modules: Mapping[str, nn.Module], device: torch.device) -> None:
        self.segments: dict[str, slice] = {}
        self._places: dict[str, dict[str, Place]] = {}
        self._frozen: dict[int, nn.Parameter] = {}
        offset = 0
        for module_name, module in modules.items():
            module.to(device)
            first = offset
            self._places[module_name] = {}
            for name, parameter in module.named_parameters():
                if not parameter.requires_grad:
                    self._frozen[id(parameter)] = parameter
                    continue
                self._places[module_name][name] = Place(
                    parameter=parameter, elements=Interval(offset, offset + parameter.numel())
                )
                offset += -(-parameter.numel() // ALIGNMENT) * ALIGNMENT
            self.segments[module_name] = slice(first, offset)
        self.vector = torch.zeros(offset, device=device)
        with torch.no_grad():
            for place in self._all_places():
                place.view(self.vector).copy_(place.parameter)
                place.parameter.data = place.view(self.vector)

    def move(self, device: torch.device) -> None:
        """Copy the vector to another device; the modules' parameters become views of the copy. Frozen parameters go
        there too; buffers stay."""
        self.vector = self.vector.to(device, copy=True)
        for place in self._all_places():
            place.parameter.data = place.view(self.vector)
        for parameter in self._frozen.values():
            parameter.data = parameter.data.to(device)

    def views(self, module_name: str, vector: Tensor) -> dict[str, Tensor]:
        """Any vector of this layout (parameters, moments, gradients), taken apart by the names of one module."""
        return {name: place.view(vector) for name, place in self._places[module_name].items()}

    def joint_segment(self, module_names: Sequence[str]) -> slice:
        """Of modules that are neighbours in the vector, in its order."""
        return slice(self.segments[module_names[0]].start, self.segments[module_names[-1]].stop)

    @contextmanager
    def collecting_gradients(self, *module_names: str) -> Iterator[Tensor]:
        """A vector of the segment of one or several modules, to which ``backward`` adds inside the context."""
        segment = self.joint_segment(module_names)
        gradient = torch.zeros_like(self.vector[segment])
        places = self.places(*module_names)
        for place in places:
            place.parameter.grad = place.view(gradient, offset=segment.start)
        try:
            yield gradient
        finally:
            for place in places:
                place.parameter.grad = None

    @contextmanager
    def adding_gradients(self, *module_names: str, total: Tensor, in_parts: Collection[Tensor]) -> Iterator[None]:
        """What ``backward`` finds inside the context is added to ``total``, the segment of the modules, in place.

        A parameter's gradient is added, and its memory freed, when ``backward`` has reached it; those of ``in_parts``,
        which more than one call of ``backward`` reaches, at the end.
        """
        places, offset = self.places(*module_names), self.joint_segment(module_names).start
        late = {id(parameter) for parameter in in_parts}

        def add(place: Place) -> Callable[[Tensor], None]:
            def add_gradient(parameter: Tensor) -> None:
                assert parameter.grad is not None
                place.view(total, offset=offset).add_(parameter.grad)
                parameter.grad = None

            return add_gradient

        hooks = [
            place.parameter.register_post_accumulate_grad_hook(add(place))  # type: ignore[no-untyped-call]
            for place in places
            if id(place.parameter) not in late
        ]
        try:
            yield
            for place in places:
                if place.parameter.grad is not None:
                    add(place)(place.parameter)
        finally:
            for hook in hooks:
                hook.remove()
            for place in places:
                place.parameter.grad = None

    def places(self, *module_names: str) -> list[Place]:
        """Of some modules' parameters, in the order of the vector."""
        return [place for name in module_names for place in self._places[name].values()]

    def named_places(self, module_name: str) -> list[tuple[str, Place]]:
        """As ``places``, with the parameters' names."""
        return list(self._places[module_name].items())

    def _all_places(self) -> list[Place]:
        return [place for places in self._places.values() for place in places.values()]
