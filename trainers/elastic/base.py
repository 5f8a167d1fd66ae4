"""The contract of a group of ranks.

Legend: W ranks, n elements of each.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

from torch import Tensor


class Group(ABC):
    """Ranks that call the same operations in the same order. Every operation has a deadline.

    All operations raise ``WorkerFailedError`` naming the ranks that did not answer; the group is broken then,
    and only ``close`` may still be called.
    """

    rank: int
    num_ranks: int
    is_waiting: bool = False
    """Whether this rank is in the middle of an operation, in which it waits for the others. Read by any thread."""

    @abstractmethod
    def broadcast(self, tensor: Tensor) -> None:
        """Overwrite ``tensor`` (contiguous) with rank 0's."""

    @abstractmethod
    def all_gather(self, tensor: Tensor) -> list[Tensor]:
        """Every rank's ``tensor``, in rank order; all must have the same shape and type."""

    @abstractmethod
    def all_to_all(self, tensor: Tensor, send_sizes: Sequence[int], receive_sizes: Sequence[int]) -> Tensor:
        """Send the next ``send_sizes[r]`` elements of ``tensor`` [sum of send_sizes] to each rank r; return what
        came in, ``receive_sizes[r]`` elements of each, in rank order: [sum of receive_sizes]."""

    @abstractmethod
    def all_gather_into(self, gathered: Tensor, tensor: Tensor) -> None:
        """Fill ``gathered`` [W n] with every rank's ``tensor`` [n], in rank order; it may be part of ``gathered``."""

    @abstractmethod
    def reduce_scatter_into(self, summed: Tensor, tensor: Tensor) -> None:
        """Fill ``summed`` [n] with this rank's part of the sum of all ranks' ``tensor`` [W n]. The order of additions
        depends on the number of ranks."""

    @abstractmethod
    def close(self) -> None:
        """Leave the group. Peers that still wait for this rank get an error."""

    def connect_again(self) -> None:  # noqa: B027  a rank on its own has nobody to connect to
        """Form the same group a second time, for ``take_second``. All ranks call this together.

        Raises:
            WorkerFailedError: a rank was lost.
        """

    def take_second(self) -> Group | None:
        """The group that was formed a second time, for another thread: two threads may not use one. It is the caller's
        to close. None where there is none, or it was taken."""
        return None

    def wait_first(self, wait: Callable[[], None]) -> None:  # noqa: B027  a rank on its own waits for nobody
        """Call ``wait`` at the begin of the next operation."""

    def interrupt(self) -> None:  # noqa: B027  nobody waits in a group of one
        """Let the thread that uses this group fail at its next operation, or in the one in which it waits as soon as
        the backend can. Called by another thread."""


class LocalGroup(Group):
    """A rank on its own: no process group, no store, no copies."""

    rank = 0
    num_ranks = 1

    def broadcast(self, tensor: Tensor) -> None:
        pass

    def all_gather(self, tensor: Tensor) -> list[Tensor]:
        return [tensor]

    def all_to_all(self, tensor: Tensor, send_sizes: Sequence[int], receive_sizes: Sequence[int]) -> Tensor:
        return tensor

    def all_gather_into(self, gathered: Tensor, tensor: Tensor) -> None:
        gathered.copy_(tensor)

    def reduce_scatter_into(self, summed: Tensor, tensor: Tensor) -> None:
        summed.copy_(tensor)

    def close(self) -> None:
        pass
