"""Weights under their Hugging Face names, as rows of the fused tensors that are computed with."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable

import torch

from rlserve.native.panels import get_rows, places_of, put_all


class NamedWeight(ABC):
    """Some rows of a fused tensor."""

    @property
    @abstractmethod
    def shape(self) -> torch.Size: ...

    @abstractmethod
    def get(self) -> torch.Tensor:
        """What is computed with: a view of it, or a copy where it lies in another order."""

    @abstractmethod
    def elements(self, indices: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """A flat tensor, and the places in it of elements given by their (int64) indices into the flattened weight."""


class PlainWeight(NamedWeight):
    """Rows from ``first_row`` on in their own order."""

    def __init__(self, fused: torch.Tensor, first_row: int, shape: torch.Size) -> None:
        self.fused, self._first_row, self._shape = fused, first_row, shape

    @property
    def shape(self) -> torch.Size:
        return self._shape

    def get(self) -> torch.Tensor:
        return self.rows_of(self.fused)

    def rows_of(self, fused: torch.Tensor) -> torch.Tensor:
        """The same rows of a tensor like the fused one."""
        return fused[self._first_row : self._first_row + self._shape[0]]

    def elements(self, indices: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.get().view(-1), indices


class PanelWeight(NamedWeight):
    """Rows from ``first_row`` on of a matrix in panels (``rlserve/native/panels.py``)."""

    def __init__(self, panels: torch.Tensor, first_row: int, shape: torch.Size) -> None:
        self.panels, self.first_row, self._shape = panels, first_row, shape

    @property
    def shape(self) -> torch.Size:
        return self._shape

    def get(self) -> torch.Tensor:
        return get_rows(self.panels, self.first_row, self._shape[0])

    def elements(self, indices: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.panels.view(-1), places_of(self.panels, self.first_row, indices)


def put_weights(pairs: Iterable[tuple[NamedWeight, torch.Tensor]]) -> None:
    """Copy tensors of the same shape into the place of weights, whatever their types and devices. The weights are of
    one type."""
    in_panels = []
    for weight, tensor in pairs:
        if isinstance(weight, PanelWeight):
            in_panels.append((weight.panels, weight.first_row, tensor))
        else:
            assert isinstance(weight, PlainWeight)
            weight.get().copy_(tensor)
    put_all(in_panels)
