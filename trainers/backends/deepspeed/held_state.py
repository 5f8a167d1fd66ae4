"""What a rank holds of the state, in host memory and apart from DeepSpeed, whose engines belong to one group."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from rlserve.trainers.backends.pytorch.saved_state import SavedProgress
from rlserve.trainers.elastic.intervals import Interval, Intervals, intersection, union

PARAMETERS, FIRST, SECOND = "parameters", "first", "second"
"""Of the vector's elements: float32 parameters, and AdamW's means of gradients and of their squares."""
VECTORS = (PARAMETERS, FIRST, SECOND)


class Pieces:
    """Some elements of a vector, each [elements] float32."""

    def __init__(self, pieces: Iterable[tuple[Interval, Tensor]] = ()) -> None:
        self._pieces = sorted(pieces, key=lambda piece: piece[0])

    @classmethod
    def empty(cls, elements: Intervals) -> Pieces:
        """Room for some elements."""
        return cls((each, torch.empty(each.num_elements)) for each in elements)

    @property
    def elements(self) -> Intervals:
        """Those that are here."""
        return union(elements for elements, _ in self._pieces)

    def items(self) -> Iterator[tuple[Interval, Tensor]]:
        """All pieces, in order."""
        return iter(self._pieces)

    def read(self, elements: Interval) -> Tensor:
        """[elements] some that are here; a view where they lie in one piece."""
        parts = [
            tensor[common.first - held.first : common.end - held.first]
            for held, tensor in self._pieces
            if (common := intersection(held, elements)).num_elements
        ]
        assert sum(len(part) for part in parts) == elements.num_elements
        return torch.cat(parts) if len(parts) != 1 else parts[0]

    def write(self, elements: Interval, values: Tensor) -> None:
        """Overwrite those of some elements for which there is room."""
        for held, tensor in self._pieces:
            common = intersection(held, elements)
            if common.num_elements:
                part = values[common.first - elements.first : common.end - elements.first]
                tensor[common.first - held.first : common.end - held.first].copy_(part)


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far training has come."""

    num_steps: int = 0
    num_updates: int = 0
    metrics: Mapping[str, float] = field(default_factory=dict)
    """Of the last step."""
    carried: Mapping[str, float] = field(default_factory=dict)
    """As ``Backend.carried``."""

    def after_step(self, metrics: Mapping[str, float], carried: Mapping[str, float]) -> Progress:
        """One step further."""
        return replace(self, num_steps=self.num_steps + 1, metrics=dict(metrics), carried=dict(carried))

    def saved(self) -> SavedProgress:
        """What a saved state has of it."""
        return SavedProgress(num_steps=self.num_steps, num_updates=self.num_updates, carried=self.carried)


@dataclass(frozen=True, kw_only=True, eq=False)
class HeldState:
    """At a step boundary."""

    progress: Progress
    vectors: Mapping[str, Pieces]
    """By ``VECTORS``. Before the first update there are no moments, which are zero."""


def filled(wanted: Mapping[str, Intervals], read: Callable[[str, Interval], Tensor]) -> dict[str, Pieces]:
    """Vectors of what ``read`` says."""
    return {
        vector: Pieces((elements, read(vector, elements)) for elements in intervals)
        for vector, intervals in wanted.items()
    }
