"""From NumPy arrays, in which a step is planned, to tensors on the device that computes it."""

from __future__ import annotations

from typing import Any

import torch
from numpy.typing import NDArray


def to_device(array: NDArray[Any], device: torch.device) -> torch.Tensor:
    """The array on the device: itself on the CPU, else a copy that nobody waits for.

    The copy goes through pinned memory of torch's own pool, which keeps it until the device has read it.
    """
    tensor = torch.from_numpy(array)
    return tensor if device.type == "cpu" else tensor.pin_memory().to(device, non_blocking=True)


def free_device_memory(device: torch.device) -> None:
    """Give memory that no tensor uses back to the system; returns when it is free."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.empty_cache()
