"""Sums over logical shards: the same bits on any number of ranks."""

from __future__ import annotations

import functools
import math
import weakref

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from thread_ranks import on_ranks
from torch import Tensor

from rlserve.trainers.elastic import reduction
from rlserve.trainers.elastic.base import Group, LocalGroup
from rlserve.trainers.elastic.reduction import gather_rows, sum_over_leaves
from rlserve.trainers.elastic.tree import covering_nodes, leaves_of_rank, num_buffers, sum_of_leaves, tree_sum

CPU = torch.device("cpu")


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


@given(num_leaves=st.integers(1, 40))
def test_a_node_is_summed_with_as_few_vectors_as_promised(num_leaves: int) -> None:
    alive: weakref.WeakSet[Tensor] = weakref.WeakSet()
    most, order = 0, []

    def leaf(index: int, onto: Tensor | None) -> Tensor:
        nonlocal most
        order.append(index)
        value = torch.zeros(1) if onto is None else onto
        alive.add(value)
        most = max(most, len(alive))
        return value

    sum_of_leaves((0, num_leaves), leaf)
    assert sorted(order) == list(range(num_leaves))
    assert most == num_buffers((0, num_leaves)) <= 1 + math.ceil(math.log2(num_leaves + 1) - 1)
    assert [num_buffers((0, number)) for number in (3, 6, 12, 24)] == [1, 2, 3, 4]


@settings(max_examples=60, deadline=None)
@given(
    num_leaves=st.integers(1, 16),
    num_elements=st.integers(1, 40),
    num_ranks=st.integers(2, 5),
    bucket=st.sampled_from([1, 20, 1000]),
    seed=st.integers(0, 2**16),
)
def test_sum_over_leaves_has_the_same_bits_on_any_number_of_ranks(
    num_leaves: int, num_elements: int, num_ranks: int, bucket: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    scales = 10.0 ** torch.randint(-6, 7, (num_leaves, 1), generator=generator)
    vectors = torch.randn(num_leaves, num_elements, generator=generator) * scales

    def leaf(index: int, onto: Tensor | None) -> Tensor:
        return vectors[index].clone() if onto is None else onto.add_(vectors[index])

    def total(group: Group) -> Tensor:
        return sum_over_leaves(group, num_leaves, leaf, num_elements=num_elements, device=CPU)

    alone = total(LocalGroup())
    by_node = tree_sum((0, num_leaves), lambda node: vectors[node[0]].clone() if node[1] - node[0] == 1 else None)
    assert torch.equal(alone, by_node)
    torch.testing.assert_close(alone.double(), vectors.double().sum(0), rtol=0, atol=float(scales.max()) * 1e-5)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reduction, "_BUCKET_ELEMENTS", bucket)
        results = on_ranks(num_ranks, total)
    for result in results:
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
