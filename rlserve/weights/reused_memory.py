"""Memory that is taken again: new memory of the system costs more than the copy that fills it, page by page."""

from __future__ import annotations

import mmap
import weakref
from collections import deque

import numpy as np
import torch


class ReusedMemory:
    """Gives tensors out, and takes the memory of the last one that nobody holds any more, nor a view of it, for the
    next of the same size."""

    def __init__(self) -> None:
        self._free: deque[mmap.mmap] = deque(maxlen=1)

    def take(self, num_bytes: int) -> torch.Tensor:
        """[num_bytes] uint8 at the beginning of a page, zero or as it was when it was given up."""
        if num_bytes == 0:
            return torch.zeros(0, dtype=torch.uint8)
        block = self._freed(num_bytes) or _new(num_bytes)
        array = np.frombuffer(block, dtype=np.uint8)
        weakref.finalize(array, self._free.append, block).atexit = False
        return torch.from_numpy(array)

    def free(self) -> None:
        """Give what nobody holds back to the system."""
        self._free.clear()

    def _freed(self, num_bytes: int) -> mmap.mmap | None:
        try:
            block = self._free.pop()
        except IndexError:
            return None
        return block if len(block) == num_bytes else None


def _new(num_bytes: int) -> mmap.mmap:
    block = mmap.mmap(-1, num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        block.madvise(mmap.MADV_HUGEPAGE)
    return block
