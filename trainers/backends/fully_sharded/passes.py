"""Passes in step: all ranks make as many, since in each all of them gather the parameters of every layer.

A rank that has less to compute than another goes through the networks with a single token instead, which adds nothing
to the gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rlserve.trainers.backends.base import Losses, PolicyOutputs
from rlserve.trainers.backends.config import TorchTrainerConfig
from rlserve.trainers.backends.pytorch.runner import ShardRunner
from rlserve.trainers.backends.pytorch.shards import LogicalShard, PassInputs, ShardInputs
from rlserve.trainers.batch import Batch
from rlserve.trainers.elastic.base import Group
from rlserve.trainers.elastic.tree import leaves_of_rank

_NOTHING = np.empty(0, dtype=np.int64)
NO_SAMPLES = LogicalShard(samples=_NOTHING, tokens=_NOTHING, num_shared=_NOTHING)
"""What a pass without samples is called with."""


class LockstepRunner(ShardRunner):
    """Cuts samples into one logical shard for each rank, which goes through a network in as few passes as fit."""

    def __init__(self, config: TorchTrainerConfig, group: Group, device: torch.device) -> None:
        super().__init__(replace(config, num_logical_shards=group.num_ranks), group, device, is_packed=False)

    def own(self, batch: Batch, shards: Sequence[LogicalShard]) -> dict[int, tuple[LogicalShard, ...]]:
        """The passes of this rank's shards, by shard."""
        return {
            leaf: self.passes(batch, shards[leaf])
            for leaf in leaves_of_rank(len(shards), self.group.rank, self.group.num_ranks)
        }

    def num_passes_without_samples(self, batch: Batch, shards: Sequence[LogicalShard]) -> int:
        """How many fewer passes this rank's shards have than those of the rank with most."""
        num_passes = [len(self.passes(batch, shard)) for shard in shards]
        of_ranks = [
            sum(num_passes[leaf] for leaf in leaves_of_rank(len(shards), rank, self.group.num_ranks))
            for rank in range(self.group.num_ranks)
        ]
        return max(of_ranks) - of_ranks[self.group.rank]

    def pass_inputs(self, batch: Batch, part: LogicalShard) -> PassInputs:
        """Of a pass that goes backward; a single token where the pass has none that is trained on."""
        return self.inputs(batch, part) if len(part.tokens) else self._single_token()

    def score(
        self,
        batch: Batch,
        columns: Callable[[LogicalShard, PassInputs], Sequence[Tensor]],
        num_columns: int,
        *,
        states_after: bool = False,
    ) -> list[NDArray[np.float32]]:
        shards = self.cut(batch, np.arange(batch.num_samples))
        with torch.no_grad(), self.autocast():
            for _ in range(self.num_passes_without_samples(batch, shards)):
                columns(NO_SAMPLES, self._single_token())
        return super().score(batch, columns, num_columns, states_after=states_after)

    def _single_token(self) -> ShardInputs:
        ids = torch.zeros(1, 1, dtype=torch.int64, device=self.device)
        return ShardInputs(input_ids=ids, states=ids[0], targets=ids[0])


def without_tokens_nothing(losses: Losses) -> Losses:
    """The same losses, and 0 with a gradient of 0 where there are no tokens."""
    of_values = losses.value

    def policy(tokens: Tensor, outputs: PolicyOutputs) -> Tensor:
        return losses.policy(tokens, outputs) if len(tokens) else outputs.log_probs.sum() * 0.0

    def value(tokens: Tensor, values: Tensor) -> Tensor:
        assert of_values is not None
        return of_values(tokens, values) if len(tokens) else values.sum() * 0.0

    return replace(losses, policy=policy, value=None if of_values is None else value)
