"""The decoder of one rank: the part of each layer that it holds, and the sums over the ranks between them.

Legend as in ``decoder/decoder.py``, with V the whole vocabulary and P a rank's part of it.
"""

from __future__ import annotations

from typing import Any

import torch

from rlserve.engine.adapters.adapter import StepAdapters
from rlserve.engine.attention.base import AttentionBackend
from rlserve.engine.decoder.decoder import Decoder
from rlserve.engine.decoder.parameters import Parameters
from rlserve.engine.kernels.base import Kernels
from rlserve.engine.models.shard import Shard
from rlserve.engine.parallel.base import RankGroup


class ShardedDecoder(Decoder):
    """All ranks call the same methods in the same order. Only rank 0 gets logits of the whole vocabulary."""

    def __init__(
        self,
        shard: Shard,
        group: RankGroup,
        parameters: Parameters,
        attention: AttentionBackend,
        kernels: Kernels,
        **limits: Any,
    ) -> None:
        super().__init__(shard.own, parameters, attention, kernels, **limits)
        self._group = group
        self._first_token_id = shard.first_token_id

    def forward(
        self, token_ids_T: torch.Tensor, last_rows_R: torch.Tensor, adapters: StepAdapters | None = None
    ) -> torch.Tensor:
        return self._whole_rows(super().forward(token_ids_T, last_rows_R, adapters))

    def logits_of(self, first: int, end: int) -> torch.Tensor:
        return self._whole_rows(super().logits_of(first, end))

    def _embed(self, token_ids_T: torch.Tensor, out_TH: torch.Tensor) -> None:
        local_T = token_ids_T - self._first_token_id
        elsewhere_T = (local_T < 0) | (local_T >= self._spec.vocab_size)
        super()._embed(local_T.masked_fill_(elsewhere_T, 0), out_TH)
        out_TH.masked_fill_(elsewhere_T.unsqueeze(1), 0)
        self._group.all_reduce(out_TH)

    def _update(self, hidden_TH: torch.Tensor, norm_H: torch.Tensor | None) -> torch.Tensor:
        self._group.all_reduce(hidden_TH)
        return super()._update(hidden_TH, norm_H)

    def _whole_rows(self, logits_RP: torch.Tensor) -> torch.Tensor:
        """[R, V] on rank 0; on the others what they have."""
        if len(logits_RP) == 0:
            return logits_RP.new_empty(0, self._spec.vocab_size * self._group.num_ranks)
        parts = self._group.gather(logits_RP)
        return torch.cat(parts, dim=1) if parts else logits_RP
