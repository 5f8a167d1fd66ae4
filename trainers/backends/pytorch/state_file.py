"""Writing a safetensors file one tensor at a time, so that what it holds need never be in memory together."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from rlserve.trainers.backends.pytorch.state import SavedTensor

_DTYPES = {torch.float32: "F32", torch.int64: "I64"}


def write_tensors(path: Path, declared: Sequence[SavedTensor], tensors: Iterable[Tensor]) -> None:
    """Write ``tensors``, which are as ``declared``, in order.

    The format (https://github.com/huggingface/safetensors): the length of the header as 8 bytes, the header as JSON,
    filled up with spaces to a multiple of 8 bytes, and the bytes of all tensors end to end.

    Raises:
        OSError: the file cannot be written.
    """
    header, first = {}, 0
    for each in declared:
        end = first + each.shape.numel() * each.dtype.itemsize
        header[each.name] = {
            "dtype": _DTYPES[each.dtype],
            "shape": list(each.shape),
            "data_offsets": [first, end],
        }
        first = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors:
            file.write(tensor.contiguous().cpu().numpy().data)
