"""Which rank computes what, and in how many passes: as many on every rank, since ranks meet within a pass.

    rank 0   pass  pass  pass      its own samples, cut as may go through a network at once
    rank 1   pass  pass  filler    samples that are computed again, and do not count

Legend: a response tokens of a pass, C columns, A response tokens of the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rlserve.trainers.backends.pytorch.shards import LogicalShard, cut_into_passes, cut_into_shards
from rlserve.trainers.batch import Batch
from rlserve.trainers.elastic.base import Group
from rlserve.trainers.elastic.reduction import gather_rows


@dataclass(frozen=True, kw_only=True)
class Pass:
    """What goes through a network at once."""

    part: LogicalShard
    counts: bool
    """Whether it is not a filler."""


@dataclass(frozen=True, kw_only=True)
class PassPlan:
    """Of some samples of a batch; a pure function of their lengths, so that all ranks agree on it."""

    parts_of_rank: Sequence[Sequence[LogicalShard]]
    """Those that count."""
    filler: LogicalShard

    def passes(self, rank: int) -> list[Pass]:
        """A rank's, in order: as many as any other's."""
        own = self.parts_of_rank[rank]
        num_fillers = max(len(parts) for parts in self.parts_of_rank) - len(own)
        return [
            *(Pass(part=part, counts=True) for part in own),
            *[Pass(part=self.filler, counts=False)] * num_fillers,
        ]

    @property
    def computed(self) -> list[LogicalShard]:
        """All ranks' passes, fillers too."""
        return [each.part for rank in range(len(self.parts_of_rank)) for each in self.passes(rank)]

    @property
    def tokens(self) -> NDArray[np.int64]:
        """[a] where the tokens of the passes that count stand in the batch's arrays, rank by rank."""
        return np.concatenate([part.tokens for parts in self.parts_of_rank for part in parts])

    def gather(self, group: Group, rows: Sequence[Tensor], num_columns: int, device: torch.device) -> Tensor:
        """[a, C] of ``tokens``, from the ``rows`` of this rank's passes that count."""
        num_rows = [sum(len(part.tokens) for part in parts) for parts in self.parts_of_rank]
        own = torch.cat(list(rows)) if rows else torch.empty(0, num_columns, device=device)
        return gather_rows(group, num_rows, {group.rank: own}, num_columns=num_columns, device=device)


def plan_passes(batch: Batch, samples: NDArray[np.int64], num_ranks: int, max_num_tokens: int) -> PassPlan:
    """Cut samples into shares of like cost, and each into passes of at most so many tokens, padding included."""
    shards = cut_into_shards(batch, samples, num_ranks)
    parts = [cut_into_passes(batch, shard, max_num_tokens) for shard in shards]
    shortest = samples[np.argmin((batch.prompt_lengths + batch.response_lengths)[samples])]
    alone = np.array([shortest], dtype=np.int64)
    return PassPlan(
        parts_of_rank=[*parts, *[()] * (num_ranks - len(parts))],
        filler=LogicalShard(samples=alone, tokens=batch.tokens_of(alone), num_shared=np.zeros_like(alone)),
    )


def score_tokens(
    group: Group,
    plan: PassPlan,
    columns: Callable[[LogicalShard], Sequence[Tensor]],
    num_columns: int,
    *,
    num_response_tokens: int,
    device: torch.device,
) -> list[NDArray[np.float32]]:
    """C arrays [A], in the order of the batch and the same on every rank, of what ``columns`` gives for each pass,
    each [a]; 0 at tokens that are not among the plan's."""
    rows = []
    with torch.no_grad():
        for each in plan.passes(group.rank):
            found = torch.stack(list(columns(each.part)), dim=1)
            if each.counts:
                rows.append(found)
    in_batch_order = np.zeros((num_response_tokens, num_columns), dtype=np.float32)
    in_batch_order[plan.tokens] = plan.gather(group, rows, num_columns, device).cpu().numpy()
    return list(in_batch_order.T)
