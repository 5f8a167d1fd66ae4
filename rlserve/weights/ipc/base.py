"""The contract of memory that processes of one machine can show each other."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch

from rlserve.errors import RlserveError
from rlserve.weights.reused_memory import Block


class UnreachableMemoryError(RlserveError, RuntimeError):
    """Memory of another process that this one cannot map."""


class IpcMemory(ABC):
    """Of the device that this process computes on. Any thread may use it."""

    @abstractmethod
    def new_block(self, num_bytes: int) -> Block:
        """Memory that can be shown.

        Raises:
            WorkerFailedError: there is not so much.
        """

    @abstractmethod
    def handle(self, payload: torch.Tensor) -> bytes:
        """What the processes of this machine, this one too, find ``payload`` by, which begins a block."""

    @abstractmethod
    def copy(self, handle: bytes, num_bytes: int) -> torch.Tensor:
        """[num_bytes] uint8 on this process's device, of what a handle stands for. It is copied, and mapped no longer,
        when this returns.

        Raises:
            UnreachableMemoryError: it cannot be mapped here, or is gone.
            WorkerFailedError: there is no memory for the copy.
        """

    @abstractmethod
    def device_name(self) -> str:
        """Of the device, for messages: one name on this machine, whatever this process numbers it as."""
