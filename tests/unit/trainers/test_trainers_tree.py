"""Sums over logical shards: the same bits on any number of ranks."""

from __future__ import annotations

import functools
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rlserve.trainers.elastic.base import Group, LocalGroup
from rlserve.trainers.elastic.reduction import gather_rows, sum_over_leaves
from rlserve.trainers.elastic.tree import covering_nodes, leaves_of_rank, tree_sum

CPU = torch.device("cpu")


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

    def close(self) -> None:
        raise AssertionError("not used here")

    def _swap(self, pieces: list[Tensor]) -> list[list[Tensor]]:
        self._board[self.rank] = pieces
        self._barrier.wait()
        seen = [list(sent) for sent in self._board]
        self._barrier.wait()
        return seen


def on_ranks(num_ranks: int, work) -> list[Tensor]:
    board: list[list[Tensor]] = [[] for _ in range(num_ranks)]
    barrier = threading.Barrier(num_ranks, timeout=30)
    with ThreadPoolExecutor(num_ranks) as threads:
        return list(threads.map(lambda rank: work(ThreadGroup(rank, board, barrier)), range(num_ranks)))


@given(num_leaves=st.integers(1, 40), num_ranks=st.integers(1, 9))
def test_ranks_share_all_leaves_and_their_covering_nodes_tile_them(num_leaves: int, num_ranks: int) -> None:
    parts = [leaves_of_rank(num_leaves, rank, num_ranks) for rank in range(num_ranks)]
    assert [leaf for part in parts for leaf in part] == list(range(num_leaves))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    for part in parts:
        nodes = covering_nodes((0, num_leaves), part)
        assert [leaf for node in nodes for leaf in range(*node)] == list(part)


def test_tree_sum_adds_halves_and_not_from_left_to_right() -> None:
    # In float32, 1e8 + 1 is 1e8: the order shows in the result.
    leaves = [1e8, 1.0, -1e8, 1.0]
    total = tree_sum((0, 4), lambda node: torch.tensor([leaves[node[0]]]) if node[1] - node[0] == 1 else None)
    assert total.item() == 0.0
    assert functools.reduce(torch.add, map(torch.tensor, leaves)).item() == 1.0


@settings(max_examples=60, deadline=None)
@given(
    num_leaves=st.integers(1, 16),
    num_elements=st.integers(1, 40),
    num_ranks=st.integers(2, 5),
    seed=st.integers(0, 2**16),
)
def test_sum_over_leaves_has_the_same_bits_on_any_number_of_ranks(
    num_leaves: int, num_elements: int, num_ranks: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    scales = 10.0 ** torch.randint(-6, 7, (num_leaves, 1), generator=generator)
    vectors = torch.randn(num_leaves, num_elements, generator=generator) * scales

    def total(group: Group) -> Tensor:
        return sum_over_leaves(
            group, num_leaves, lambda leaf: vectors[leaf].clone(), num_elements=num_elements, device=CPU
        )

    alone = total(LocalGroup())
    torch.testing.assert_close(alone.double(), vectors.double().sum(0), rtol=0, atol=float(scales.max()) * 1e-5)
    for result in on_ranks(num_ranks, total):
        assert torch.equal(result, alone)


@settings(max_examples=40, deadline=None)
@given(sizes=st.lists(st.integers(1, 5), min_size=1, max_size=10), num_ranks=st.integers(2, 5))
def test_gather_rows_joins_ragged_leaves_in_order(sizes: list[int], num_ranks: int) -> None:
    rows = torch.arange(2.0 * sum(sizes)).view(-1, 2)
    of_leaf = dict(enumerate(rows.split(sizes)))

    def gathered(group: Group) -> Tensor:
        own = {leaf: of_leaf[leaf] for leaf in leaves_of_rank(len(sizes), group.rank, group.num_ranks)}
        return gather_rows(group, sizes, own, num_columns=2, device=CPU)

    for result in on_ranks(num_ranks, gathered):
        assert torch.equal(result, rows)
