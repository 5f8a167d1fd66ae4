"""The gradient of one network, or of those that go through one pass, summed over the logical shards of a mini-batch.

Legend: a response tokens of a pass or a shard, C columns, N elements of the networks' segment of the flat vector.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from rlserve.trainers.backends.pytorch.parameters import FlatParameters
from rlserve.trainers.backends.pytorch.shards import LogicalShard
from rlserve.trainers.elastic.base import Group
from rlserve.trainers.elastic.reduction import sum_over_leaves


def sum_network_gradient(
    group: Group,
    flat: FlatParameters,
    networks: Sequence[str],
    passes_of_shard: Sequence[Sequence[LogicalShard]],
    backward: Callable[[LogicalShard], Tensor],
    *,
    in_parts: Sequence[nn.Parameter],
) -> tuple[Tensor, dict[int, Tensor]]:
    """Go backward over this rank's shards, and sum over all shards in the fixed tree.

    Args:
        networks: all that a pass reaches.
        backward: goes backward over one pass and returns what the networks said about its tokens, [a, C].
        in_parts: parameters that one pass reaches more than once.

    Returns:
        the gradient [N], the same on every rank, and the rows [a, C] of this rank's shards.
    """
    rows_of_shard: dict[int, Tensor] = {}

    def gradient_of_shard(index: int, onto: Tensor | None) -> Tensor:
        passes = passes_of_shard[index]
        if onto is None:
            with flat.collecting_gradients(*networks) as gradient:
                rows_of_shard[index] = torch.cat([backward(part) for part in passes])
            return gradient
        # The passes of a shard are added up before it is added to others.
        late = in_parts if len(passes) == 1 else [place.parameter for place in flat.places(*networks)]
        with flat.adding_gradients(*networks, total=onto, in_parts=late):
            rows_of_shard[index] = torch.cat([backward(part) for part in passes])
        return onto

    gradient = sum_over_leaves(
        group,
        len(passes_of_shard),
        gradient_of_shard,
        num_elements=flat.vector[flat.joint_segment(networks)].numel(),
        device=flat.vector.device,
    )
    return gradient, rows_of_shard
