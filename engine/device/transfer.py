"""From NumPy arrays, in which a step is planned, to tensors on the device that computes it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

_ALIGNMENT = 4
"""Elements of 4 bytes: Triton reads pointers to multiples of 16 bytes in wide words."""


def to_device(array: NDArray[Any], device: torch.device) -> torch.Tensor:
    """The array on the device: itself on the CPU, else a copy that nobody waits for.

    The copy goes through pinned memory of torch's own pool, which keeps it until the device has read it.
    """
    tensor = torch.from_numpy(array)
    return tensor if device.type == "cpu" else tensor.pin_memory().to(device, non_blocking=True)


def upload(
    arrays: Sequence[NDArray[np.int32] | NDArray[np.float32]], device: torch.device, memory: torch.Tensor | None = None
) -> list[torch.Tensor]:
    """Copy the small arrays of a step to the device at once, without waiting for it.

    Args:
        arrays: of 4-byte numbers, any shapes.
        memory: int32 on the device: where to put them, one behind the other, so that arrays of the same sizes
            lie at the same addresses each time. None takes new memory.

    Returns:
        A view of the copy for each array, of its shape and type.
    """
    starts = np.cumsum([0, *(-(-array.size // _ALIGNMENT) * _ALIGNMENT for array in arrays)]).tolist()
    on_gpu = device.type == "cuda"
    host = torch.empty(starts[-1], dtype=torch.int32, pin_memory=on_gpu)
    host_words = host.numpy()
    for start, array in zip(starts, arrays, strict=False):
        host_words[start : start + array.size] = np.ascontiguousarray(array).reshape(-1).view(np.int32)
    if memory is None:
        placed = host.to(device, non_blocking=True) if on_gpu else host
    else:
        assert len(memory) >= len(host), f"{len(host)} words do not fit into {len(memory)}"
        placed = memory[: len(host)].copy_(host, non_blocking=True)
    return [
        placed[start : start + array.size]
        .view(torch.float32 if array.dtype == np.float32 else torch.int32)
        .view(array.shape)
        for start, array in zip(starts, arrays, strict=False)
    ]
