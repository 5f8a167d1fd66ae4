"""The contract of the ranks that compute one model together.

Rank 0 leads: it schedules, samples, and sends the others what to compute. They follow: each waits for a message,
computes its part, and waits again.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np
import torch
from numpy.typing import NDArray


class RankGroup(ABC):
    """One rank's end. All ranks call the collective operations in the same order.

    Every operation raises ``WorkerFailedError`` if a rank is lost; the group is closed then.
    """

    rank: int
    num_ranks: int

    @abstractmethod
    def send(self, words: NDArray[np.int32]) -> None:
        """Rank 0 alone: send a small message to all others."""

    @abstractmethod
    def receive(self) -> NDArray[np.int32]:
        """All others: wait for the next message, as long as rank 0 lives."""

    @abstractmethod
    def broadcast(self, tensor: torch.Tensor) -> None:
        """Overwrite ``tensor`` (contiguous, on the group's device) with that of rank 0."""

    @abstractmethod
    def all_reduce(self, tensor: torch.Tensor) -> None:
        """Overwrite ``tensor`` (contiguous) with the sum over the ranks: the same bits on all of them."""

    @abstractmethod
    def gather(self, tensor: torch.Tensor) -> list[torch.Tensor]:
        """On rank 0 the tensors (contiguous, of one shape) of all ranks in order; on the others nothing. Ends when
        all ranks have come this far on their devices: results read before may be void where a rank is lost."""

    @abstractmethod
    def close(self) -> None:
        """Leave. Ranks that still wait for this one get an error."""
