"""Memory that is taken again: new memory of the system costs more than the copy that fills it, page by page."""

from __future__ import annotations

import mmap
import weakref
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable

import numpy as np
import torch


class Block(ABC):
    """Memory that is given back once nobody holds the block any more."""

    num_bytes: int

    @abstractmethod
    def view(self) -> tuple[torch.Tensor, object]:
        """[num_bytes] uint8, and an object that lives as long as the tensor or any view of it."""


class HostBlock(Block):
    """Pages of the host's memory, zero at first."""

    def __init__(self, num_bytes: int) -> None:
        self.num_bytes = num_bytes
        self._pages = mmap.mmap(-1, num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        if hasattr(mmap, "MADV_HUGEPAGE"):
            self._pages.madvise(mmap.MADV_HUGEPAGE)

    def view(self) -> tuple[torch.Tensor, object]:
        array = np.frombuffer(self._pages, dtype=np.uint8)
        return torch.from_numpy(array), array


class ReusedMemory:
    """Gives tensors out, and takes the memory of the last one that nobody holds any more, nor a view of it, for the
    next of the same size."""

    def __init__(self, new_block: Callable[[int], Block] = HostBlock) -> None:
        self._new_block = new_block
        self._free: deque[Block] = deque(maxlen=1)

    def take(self, num_bytes: int) -> torch.Tensor:
        """[num_bytes] uint8 at the beginning of a block, with any content."""
        if num_bytes == 0:
            return torch.zeros(0, dtype=torch.uint8)
        block = self._freed(num_bytes) or self._new_block(num_bytes)
        tensor, held = block.view()
        weakref.finalize(held, self._free.append, block).atexit = False
        return tensor

    def free(self) -> None:
        """Give what nobody holds back to the system."""
        self._free.clear()

    def _freed(self, num_bytes: int) -> Block | None:
        try:
            block = self._free.pop()
        except IndexError:
            return None
        return block if block.num_bytes == num_bytes else None
