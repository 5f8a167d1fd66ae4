"""Host memory that processes show each other as GPUs do theirs: what stands in for CUDA IPC."""

from __future__ import annotations

import mmap
import os
import weakref
from pathlib import Path

import numpy as np
import torch

from rlserve.weights.ipc.base import IpcMemory, UnreachableMemoryError
from rlserve.weights.reused_memory import Block


class SharedBlock(Block):
    """A file in memory, which goes with its process, or with the block."""

    def __init__(self, num_bytes: int) -> None:
        self.num_bytes = num_bytes
        self._file = os.memfd_create("weights")
        os.ftruncate(self._file, num_bytes)
        self._pages = mmap.mmap(self._file, num_bytes)
        self.path = f"/proc/{os.getpid()}/fd/{self._file}"
        weakref.finalize(self, os.close, self._file)

    def view(self) -> tuple[torch.Tensor, object]:
        array = np.frombuffer(self._pages, dtype=np.uint8)
        return torch.from_numpy(array), array


class HostIpcMemory(IpcMemory):
    """A handle is the path of a block's file."""

    def __init__(self) -> None:
        self._blocks: weakref.WeakSet[SharedBlock] = weakref.WeakSet()

    @property
    def num_blocks(self) -> int:
        """That are held."""
        return len(self._blocks)

    def new_block(self, num_bytes: int) -> Block:
        block = SharedBlock(num_bytes)
        self._blocks.add(block)
        return block

    def handle(self, payload: torch.Tensor) -> bytes:
        (path,) = [block.path for block in self._blocks if block.view()[0].data_ptr() == payload.data_ptr()]
        return path.encode()

    def copy(self, handle: bytes, num_bytes: int) -> torch.Tensor:
        try:
            content = np.fromfile(Path(handle.decode()), dtype=np.uint8, count=num_bytes)
        except OSError as error:
            raise UnreachableMemoryError(str(error)) from error
        return torch.from_numpy(content)

    def device_name(self) -> str:
        return "the host"
