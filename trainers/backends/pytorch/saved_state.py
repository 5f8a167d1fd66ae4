"""A saved state as named tensors of which any elements can be read, and what of it says how far training has come."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from rlserve.errors import WeightsRefusedError
from rlserve.trainers.elastic.intervals import Interval

_COUNTERS = "counters"
"""Name of the tensor [steps, optimizer updates]."""
_CARRIED = "carried"
"""Name of the tensor of the numbers that the algorithm carries from step to step, in order of their names; it is not
there where it carries none."""


@dataclass(frozen=True, kw_only=True)
class SavedTensor:
    """One tensor of a saved state."""

    name: str
    shape: torch.Size
    dtype: torch.dtype


class SavedState(ABC):
    """A saved state, of which any elements can be read."""

    tensors: Mapping[str, SavedTensor]
    """What it consists of, by name."""

    @abstractmethod
    def read(self, name: str, elements: Interval) -> Tensor:
        """Some elements of a tensor, counted through all its dimensions; [elements]."""


class StateInMemory(SavedState):
    """As ``gathered`` gives it."""

    def __init__(self, state: Mapping[str, Tensor]) -> None:
        self._state = state
        self.tensors = {
            name: SavedTensor(name=name, shape=tensor.shape, dtype=tensor.dtype) for name, tensor in state.items()
        }

    def read(self, name: str, elements: Interval) -> Tensor:
        return self._state[name].flatten()[elements.elements]


@dataclass(frozen=True, kw_only=True)
class SavedProgress:
    """How far training has come."""

    num_steps: int
    num_updates: int
    carried: Mapping[str, float]
    """As ``Backend.carried``."""

    @classmethod
    def declared(cls, carried: Iterable[str]) -> list[SavedTensor]:
        """Its tensors, where the algorithm carries numbers of these names."""
        number = len(list(carried))
        found = [SavedTensor(name=_COUNTERS, shape=torch.Size([2]), dtype=torch.int64)]
        if number:
            found.append(SavedTensor(name=_CARRIED, shape=torch.Size([number]), dtype=torch.float64))
        return found

    def tensors(self) -> dict[str, Tensor]:
        """Those that are ``declared``, in the same order."""
        found = {_COUNTERS: torch.tensor([self.num_steps, self.num_updates])}
        if self.carried:
            numbers = [self.carried[name] for name in sorted(self.carried)]
            found[_CARRIED] = torch.tensor(numbers, dtype=torch.float64)
        return found

    @classmethod
    def read(cls, saved: SavedState, carried: Iterable[str]) -> SavedProgress:
        """Back from a state that fits what is ``declared``."""
        num_steps, num_updates = saved.read(_COUNTERS, Interval(0, 2)).tolist()
        names = sorted(carried)
        numbers = saved.read(_CARRIED, Interval(0, len(names))).tolist() if names else []
        return cls(num_steps=num_steps, num_updates=num_updates, carried=dict(zip(names, numbers, strict=True)))


def check_fits(expected: Mapping[str, SavedTensor], saved: Mapping[str, SavedTensor]) -> None:
    """Raise ``WeightsRefusedError`` where names, shapes or types of a saved state are not those that a trainer has."""
    if odd := sorted(expected.keys() ^ saved.keys()):
        where = "lacks" if odd[0] in expected else "has the unknown"
        raise WeightsRefusedError(f"saved trainer state {where} tensor {odd[0]!r} ({len(odd)} such names)")
    for name, own in expected.items():
        if (own.shape, own.dtype) != (saved[name].shape, saved[name].dtype):
            raise WeightsRefusedError(
                f"saved trainer state does not fit: {name!r} is {saved[name].dtype} {tuple(saved[name].shape)}, "
                f"this trainer's is {own.dtype} {tuple(own.shape)}"
            )
