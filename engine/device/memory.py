"""The memory of a device: what there is room for, and giving it back."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from dataclasses import dataclass

import torch


@dataclass(frozen=True, kw_only=True)
class MemoryLeft:
    """What a GPU has room for."""

    free_bytes: int
    """Free for anybody, while nothing is computed."""
    step_bytes: int
    """Of these, what one step takes at its peak."""


def measure_memory(device: torch.device, compute: Callable[[], None]) -> MemoryLeft:
    """Call ``compute``, which must keep nothing, and tell what it took of the memory of a GPU and what is free now."""
    free_device_memory(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    compute()
    free_device_memory(device)
    step_bytes = torch.cuda.max_memory_allocated(device) - before
    return MemoryLeft(free_bytes=torch.cuda.mem_get_info(device)[0], step_bytes=step_bytes)


def free_device_memory(device: torch.device) -> None:
    """Give memory that no tensor uses back to the system; returns when it is free."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.empty_cache()
    elif sys.platform == "linux":
        # The allocator of glibc keeps blocks of up to 32 MiB for itself; others have no such function, nor need.
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(ctypes.c_size_t(0))
