"""Sums and gathers over logical shards (leaves) spread over the ranks of a group.

Legend: N elements of the summed vector, W ranks, S = ceil(N / W) elements that a rank owns, L leaves,
C columns.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from rlserve.trainers.elastic.base import Group
from rlserve.trainers.elastic.tree import Node, covering_nodes, leaves_of_rank, tree_sum


def sum_over_leaves(
    group: Group, num_leaves: int, leaf: Callable[[int], Tensor], *, num_elements: int, device: torch.device
) -> Tensor:
    """Sum the vectors ``leaf(0) … leaf(L - 1)``, each [N] float32, in the fixed tree.

    ``leaf`` is called for this rank's leaves only, and its result is overwritten. Every rank returns the same
    bits, whatever the number of ranks:

        1. each rank adds up its covering nodes (see ``tree``), holding about log2(L) vectors at a time;
        2. all-to-all: rank r receives elements [r S, (r+1) S) of every node of every rank;
        3. rank r adds its slice up the rest of the tree;
        4. all-gather of the slices.
    """
    root = (0, num_leaves)

    def known_leaf(node: Node) -> Tensor | None:
        return leaf(node[0]) if node[1] - node[0] == 1 else None

    nodes_of_rank = [
        covering_nodes(root, leaves_of_rank(num_leaves, rank, group.num_ranks)) for rank in range(group.num_ranks)
    ]
    sums = [tree_sum(node, known_leaf) for node in nodes_of_rank[group.rank]]
    if group.num_ranks == 1:
        return sums[0]

    slice_length = -(-num_elements // group.num_ranks)
    to_send = torch.empty(group.num_ranks, len(sums), slice_length, device=device)
    for position, vector in enumerate(sums):
        padding = slice_length * group.num_ranks - num_elements
        to_send[:, position] = torch.nn.functional.pad(vector, (0, padding)).view(group.num_ranks, slice_length)
    sums.clear()
    received = group.all_to_all(
        to_send.flatten(),
        send_sizes=[to_send[0].numel()] * group.num_ranks,
        receive_sizes=[len(nodes) * slice_length for nodes in nodes_of_rank],
    )
    nodes = [node for nodes in nodes_of_rank for node in nodes]
    slices = dict(zip(nodes, received.view(-1, slice_length), strict=True))
    return torch.cat(group.all_gather(tree_sum(root, slices.get)))[:num_elements]


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
