"""Forward passes over a batch: logical shards spread over the ranks, the answers gathered.

Legend: A response tokens of the batch, a response tokens of a pass, C columns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rlserve.trainers.backends.config import TorchTrainerConfig
from rlserve.trainers.backends.pytorch.native_policy import NativePolicy
from rlserve.trainers.backends.pytorch.packed.prefixes import pack
from rlserve.trainers.backends.pytorch.shards import (
    LogicalShard,
    PassInputs,
    cut_into_packed_passes,
    cut_into_packed_shards,
    cut_into_passes,
    cut_into_shards,
    num_packed_tokens,
    num_padded_tokens,
    padding_share,
    shard_inputs,
)
from rlserve.trainers.batch import Batch
from rlserve.trainers.elastic.base import Group, LocalGroup
from rlserve.trainers.elastic.reduction import gather_rows
from rlserve.trainers.elastic.tree import leaves_of_rank


class ShardRunner:
    """Runs functions of passes on the logical shards of this rank, and gathers what comes out on every rank."""

    def __init__(self, config: TorchTrainerConfig, group: Group, device: torch.device, *, is_packed: bool) -> None:
        """``is_packed``: passes are for packed decoders, which need no padding."""
        self.group = group
        self.device = device
        self._config = config
        self._is_packed = is_packed

    def alone(self) -> ShardRunner:
        """One that computes everything on this rank: nothing is spread, so nothing need be cut."""
        config = replace(self._config, num_logical_shards=1)
        return ShardRunner(config, LocalGroup(), self.device, is_packed=self._is_packed)

    def cut(self, batch: Batch, samples: NDArray[np.int64]) -> tuple[LogicalShard, ...]:
        """The logical shards of some samples of a batch."""
        cut = cut_into_packed_shards if self._is_packed else cut_into_shards
        return cut(batch, samples, self._config.num_logical_shards)

    def passes(self, batch: Batch, shard: LogicalShard) -> tuple[LogicalShard, ...]:
        """The parts of a shard that go through a network at once, in order."""
        cut = cut_into_packed_passes if self._is_packed else cut_into_passes
        return cut(batch, shard, self._config.ppo_max_token_len_per_gpu)

    def padding_share(self, batch: Batch, passes: Iterable[LogicalShard]) -> float:
        """Of all tokens of some passes, those that are padding."""
        return 0.0 if self._is_packed else padding_share(batch, passes)

    def inputs(self, batch: Batch, shard: LogicalShard, *, states_after: bool = False) -> PassInputs:
        """A shard or a pass on this rank's device; ``states_after`` as for ``shard_inputs``."""
        if self._is_packed:
            return pack(batch, shard.samples, shard.num_shared, states_after=states_after)
        return shard_inputs(batch, shard, self.device, states_after=states_after)

    def autocast(self) -> torch.autocast:
        """Passes inside compute in the configured type; weights stay float32."""
        enabled = self._config.dtype == "bfloat16"
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=enabled)

    def native_policy(self, policy: Any, batch: Batch) -> NativePolicy | None:
        """The policy, with its present weights, as the engine computes it; None where that was not asked for."""
        if not self._config.deterministic:
            return None
        return NativePolicy(policy, longest=int((batch.prompt_lengths + batch.response_lengths).max()) - 1)

    def fits_one_pass(self, batch: Batch) -> bool:
        """Whether all that this rank computes of a batch, and its largest pass once more, are no more tokens than may
        go through a network at once."""
        shards = self.cut(batch, np.arange(batch.num_samples))
        num_tokens = [
            num_packed_tokens(batch, part) if self._is_packed else num_padded_tokens(batch, part)
            for leaf in self._own_leaves(shards)
            for part in self.passes(batch, shards[leaf])
        ]
        return sum(num_tokens) + max(num_tokens, default=0) <= self._config.ppo_max_token_len_per_gpu

    def gather(self, shards: Sequence[LogicalShard], rows: dict[int, Tensor], num_columns: int) -> Tensor:
        """[tokens of all shards, C], shard by shard, from the ``rows`` [a, C] that each rank has of its own shards."""
        num_tokens = [len(shard.tokens) for shard in shards]
        return gather_rows(self.group, num_tokens, rows, num_columns=num_columns, device=self.device)

    def score(
        self,
        batch: Batch,
        columns: Callable[[LogicalShard, PassInputs], Sequence[Tensor]],
        num_columns: int,
        *,
        states_after: bool = False,
    ) -> list[NDArray[np.float32]]:
        """Per-token numbers of the whole batch, without gradients.

        Args:
            columns: gives C tensors, each [a] float32, for one pass and its inputs.
            states_after: the passes' states are those after the response tokens, not before.

        Returns:
            C arrays, each [A] in the order of the batch, the same on every rank; 0 at tokens that are not trained on.
        """
        shards = self.cut(batch, np.arange(batch.num_samples))
        with torch.no_grad(), self.autocast():
            rows = {
                leaf: torch.cat(
                    [
                        torch.stack(list(columns(part, self.inputs(batch, part, states_after=states_after))), dim=1)
                        for part in self.passes(batch, shards[leaf])
                    ]
                )
                for leaf in self._own_leaves(shards)
            }
        gathered = self.gather(shards, rows, num_columns)
        in_batch_order = np.zeros((batch.num_response_tokens, num_columns), dtype=np.float32)
        in_batch_order[tokens_of(shards)] = gathered.cpu().numpy()
        return list(in_batch_order.T)

    def _own_leaves(self, shards: Sequence[LogicalShard]) -> Sequence[int]:
        return leaves_of_rank(len(shards), self.group.rank, self.group.num_ranks)


def tokens_of(shards: Sequence[LogicalShard]) -> NDArray[np.int64]:
    """Where the tokens of some shards stand in the batch's per-token arrays, shard by shard."""
    return np.concatenate([shard.tokens for shard in shards])
