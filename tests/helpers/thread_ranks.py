"""Ranks of a group that are threads of one process."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch
from torch import Tensor

from rlserve.trainers.elastic.base import Group

T = TypeVar("T")


class ThreadGroup(Group):
    """Ranks that are threads of one process and meet on a board."""

    def __init__(self, rank: int, board: list[list[Tensor]], barrier: threading.Barrier) -> None:
        self.rank = rank
        self.num_ranks = len(board)
        self._board = board
        self._barrier = barrier

    def broadcast(self, tensor: Tensor) -> None:
        raise AssertionError("not used here")

    def all_gather(self, tensor: Tensor) -> list[Tensor]:
        return [pieces[0] for pieces in self._swap([tensor] * self.num_ranks)]

    def all_to_all(self, tensor: Tensor, send_sizes: Sequence[int], receive_sizes: Sequence[int]) -> Tensor:
        pieces = self._swap(list(tensor.split(list(send_sizes))))
        mine = [sent[self.rank] for sent in pieces]
        assert [len(piece) for piece in mine] == list(receive_sizes)
        return torch.cat(mine)

    def all_gather_into(self, gathered: Tensor, tensor: Tensor) -> None:
        raise AssertionError("not used here")

    def reduce_scatter_into(self, summed: Tensor, tensor: Tensor) -> None:
        raise AssertionError("not used here")

    def close(self) -> None:
        raise AssertionError("not used here")

    def _swap(self, pieces: list[Tensor]) -> list[list[Tensor]]:
        self._board[self.rank] = pieces
        self._barrier.wait()
        seen = [list(sent) for sent in self._board]
        self._barrier.wait()
        return seen


def on_ranks(num_ranks: int, work: Callable[[Group], T]) -> list[T]:
    """Do the same work on all ranks at once; their results."""
    board: list[list[Tensor]] = [[] for _ in range(num_ranks)]
    barrier = threading.Barrier(num_ranks, timeout=30)
    with ThreadPoolExecutor(num_ranks) as threads:
        return list(threads.map(lambda rank: work(ThreadGroup(rank, board, barrier)), range(num_ranks)))
