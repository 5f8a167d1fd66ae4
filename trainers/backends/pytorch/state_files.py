"""A saved state on disk: one safetensors file of each rank that wrote it, and an index of which elements lie where.

::

    trainer/
        index.json                           of each tensor: type, shape, and its parts (file, first element, end)
        state-00001-of-00002.safetensors     parts, each one-dimensional, under the names of their tensors
        state-00002-of-00002.safetensors

Whoever reads takes any elements of any tensor, so the number of ranks that wrote need not be that of those that load.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from rlserve.trainers.backends.pytorch.saved_state import SavedState, SavedTensor
from rlserve.trainers.elastic.intervals import Interval, intersection

INDEX_FILE = "index.json"

_DTYPES = {"F32": torch.float32, "F64": torch.float64, "I64": torch.int64}
_DTYPE_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


@dataclass(frozen=True, kw_only=True)
class Part:
    """Some elements of a tensor, and the file that has them."""

    file: str
    elements: Interval


def file_name(rank: int, num_ranks: int) -> str:
    """``state-00001-of-00004.safetensors``, as Hugging Face counts them: from 1."""
    return f"state-{rank + 1:05d}-of-{num_ranks:05d}.safetensors"


def parts_of_rank_0(tensors: Mapping[str, Tensor], num_ranks: int) -> dict[str, list[Part]]:
    """Of tensors that rank 0 alone writes, whole."""
    file = file_name(0, num_ranks)
    return {name: [Part(file=file, elements=Interval(0, tensor.numel()))] for name, tensor in tensors.items()}


def write_index(folder: Path, declared: Sequence[SavedTensor], parts: Mapping[str, Sequence[Part]]) -> None:
    """Write which parts the tensors of a state consist of.

    Raises:
        OSError: the file cannot be written.
    """
    index = {
        tensor.name: {
            "dtype": _DTYPE_NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "parts": [[part.file, *part.elements] for part in parts[tensor.name]],
        }
        for tensor in declared
    }
    (folder / INDEX_FILE).write_text(json.dumps(index, indent=1))


class StateFiles(SavedState):
    """Reads what the ranks of a group wrote; see ``SavedState``."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._parts: dict[str, list[Part]] = {}
        self._open: dict[str, Any] = {}
        tensors = {}
        for name, found in json.loads((folder / INDEX_FILE).read_text()).items():
            tensors[name] = SavedTensor(name=name, shape=torch.Size(found["shape"]), dtype=_DTYPES[found["dtype"]])
            self._parts[name] = [Part(file=file, elements=Interval(first, end)) for file, first, end in found["parts"]]
        self.tensors = tensors

    def read(self, name: str, elements: Interval) -> Tensor:
        pieces = []
        for part in self._parts[name]:
            common = intersection(part.elements, elements)
            if common.num_elements:
                first = part.elements.first
                pieces.append(self._file(part.file).get_slice(name)[common.first - first : common.end - first])
        return torch.cat(pieces) if len(pieces) > 1 else pieces[0]

    def _file(self, name: str) -> Any:
        if name not in self._open:
            self._open[name] = safe_open(self._folder / name, framework="pt")
        return self._open[name]
