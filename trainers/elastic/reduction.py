"""Sums and gathers over logical shards (leaves) spread over the ranks of a group.

Legend: N elements of the summed vector, W ranks, S = ceil(N / W) elements that a rank owns, L leaves,
C columns.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from rlserve.trainers.elastic.base import Group
from rlserve.trainers.elastic.tree import Leaf, covering_nodes, leaves_of_rank, sum_of_leaves, tree_sum

_BUCKET_ELEMENTS = 2**20
"""Of a vector that are on their way at once, all ranks together: 16 MiB."""


def sum_over_leaves(group: Group, num_leaves: int, leaf: Leaf, *, num_elements: int, device: torch.device) -> Tensor:
    """Sum the vectors of leaves 0 … L - 1, each [N] float32, in the fixed tree.

    ``leaf`` is asked for this rank's leaves only. Every rank returns the same bits, whatever the number of ranks:

        1. each rank adds up its covering nodes (see ``tree``);
        2. all-to-all: rank r receives elements [r S, (r+1) S) of every node of every rank;
        3. rank r adds its slice up the rest of the tree;
        4. all-gather of the slices.

    The last three go through the slices a bucket at a time and leave the result where the first node was, so what is
    held beside this rank's nodes is small.
    """
    root = (0, num_leaves)
    nodes_of_rank = [
        covering_nodes(root, leaves_of_rank(num_leaves, rank, group.num_ranks)) for rank in range(group.num_ranks)
    ]
    sums = [sum_of_leaves(node, leaf) for node in nodes_of_rank[group.rank]]
    if group.num_ranks == 1:
        return sums[0]
    total = sums[0] if sums else torch.empty(num_elements, device=device)
    nodes = [node for nodes in nodes_of_rank for node in nodes]
    for bucket in _buckets(num_elements, group.num_ranks):
        lengths = [part.stop - part.start for part in bucket]
        own_length = lengths[group.rank]
        received = group.all_to_all(
            torch.cat([vector[part] for part in bucket for vector in sums]) if sums else total.new_empty(0),
            send_sizes=[length * len(sums) for length in lengths],
            receive_sizes=[own_length * len(nodes) for nodes in nodes_of_rank],
        )
        slices = dict(zip(nodes, received.view(len(nodes), own_length), strict=True))
        own = torch.nn.functional.pad(tree_sum(root, slices.get), (0, max(lengths) - own_length))
        for part, length, summed in zip(bucket, lengths, group.all_gather(own), strict=True):
            total[part] = summed[:length]
    return total


def _buckets(num_elements: int, num_ranks: int) -> Iterator[tuple[slice, ...]]:
    """Cut each rank's slice of a vector alike: for every bucket, the elements of each rank."""
    slice_length = -(-num_elements // num_ranks)
    bucket_length = max(1, _BUCKET_ELEMENTS // num_ranks)
    for first in range(0, slice_length, bucket_length):
        end = min(first + bucket_length, slice_length)
        yield tuple(
            slice(min(rank * slice_length + first, num_elements), min(rank * slice_length + end, num_elements))
            for rank in range(num_ranks)
        )


def gather_rows(
    group: Group,
    num_rows_of_leaf: Sequence[int],
    rows_of_leaf: Mapping[int, Tensor],
    *,
    num_columns: int,
    device: torch.device,
) -> Tensor:
    """Join the float32 rows that every rank has for its own leaves: [rows of all leaves, C], leaf by leaf."""
    leaves_by_rank = [leaves_of_rank(len(num_rows_of_leaf), rank, group.num_ranks) for rank in range(group.num_ranks)]
    num_rows_of_rank = [sum(num_rows_of_leaf[leaf] for leaf in leaves) for leaves in leaves_by_rank]
    padded = torch.zeros(max(num_rows_of_rank), num_columns, device=device)
    if leaves_by_rank[group.rank]:
        own = torch.cat([rows_of_leaf[leaf] for leaf in leaves_by_rank[group.rank]])
        padded[: num_rows_of_rank[group.rank]] = own
    gathered = group.all_gather(padded)
    return torch.cat([part[:num_rows] for part, num_rows in zip(gathered, num_rows_of_rank, strict=True)])
