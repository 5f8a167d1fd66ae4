"""The fixed binary tree in which logical shards are summed.

Floating-point addition is not associative, so the *order* of additions decides the bits. Here the order hangs
on the number of leaves alone: node (a, b) stands for leaves a … b-1 and is the sum of its two halves. A rank
that computes leaves 4 … 7 of 12 may add up exactly those nodes that lie wholly inside its range (its *covering
nodes*); the rest of the tree is added by whoever holds the other nodes. Who that is changes no bit.

    (0,12) ── (0,6) ── (0,3) …          rank 0 of 2 computes node (0,6), rank 1 node (6,12), and
           └─ (6,12) ─ (6,9) …          (0,12) = (0,6) + (6,12) on one rank as on two.

Nor does the order in which the two halves of a node are computed, since a + b = b + a.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

Node = tuple[int, int]
"""(first leaf, one past the last leaf)."""

Leaf = Callable[[int, Tensor | None], Tensor]
"""``leaf(index, onto)`` returns the value of a leaf, in memory of its own that may be overwritten, or adds it to
``onto``, a part at a time, so that the whole of it is never held, and returns that."""


def halves(node: Node) -> tuple[Node, Node]:
    """The two children of a node of at least two leaves."""
    first, end = node
    assert end - first >= 2
    middle = (first + end) // 2
    return (first, middle), (middle, end)


def leaves_of_rank(num_leaves: int, rank: int, num_ranks: int) -> range:
    """The leaves that a rank computes: a contiguous part, even to within one; empty where ranks outnumber leaves."""
    return range(rank * num_leaves // num_ranks, (rank + 1) * num_leaves // num_ranks)


def covering_nodes(node: Node, leaves: range) -> tuple[Node, ...]:
    """The largest nodes under ``node`` that lie wholly inside ``leaves``, left to right."""
    first, end = node
    if first >= leaves.stop or end <= leaves.start:
        return ()
    if leaves.start <= first and end <= leaves.stop:
        return (node,)
    left, right = halves(node)
    return covering_nodes(left, leaves) + covering_nodes(right, leaves)


def num_buffers(node: Node) -> int:
    """How many values ``sum_of_leaves`` holds at a time for a node: 1 up to 3 leaves, 2 up to 6, 3 up to 12 … (Sethi
    and Ullman 1970, with single leaves added on the way)."""
    if node[1] - node[0] == 1:
        return 1
    smaller, larger = sorted(num_buffers(half) for half in halves(node))
    if any(end - first == 1 for first, end in halves(node)):
        return larger
    return max(larger, smaller + 1)


def sum_of_leaves(node: Node, leaf: Leaf) -> Tensor:
    """The sum of a node, computed from its leaves with as few values at a time as the tree allows."""
    first, end = node
    if end - first == 1:
        return leaf(first, None)
    lighter, heavier = sorted(halves(node), key=lambda half: (num_buffers(half), half[1] - half[0]))
    total = sum_of_leaves(heavier, leaf)
    if lighter[1] - lighter[0] == 1:
        return leaf(lighter[0], total)
    return total.add_(sum_of_leaves(lighter, leaf))


def tree_sum(node: Node, known: Callable[[Node], Tensor | None]) -> Tensor:
    """The sum of a node. ``known(node)`` returns the value of a node that need not be split (every leaf at least),
    which is then overwritten, or None."""
    value = known(node)
    if value is not None:
        return value
    left, right = halves(node)
    return tree_sum(left, known).add_(tree_sum(right, known))
