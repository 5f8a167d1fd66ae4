"""Paged attention by flash-attn 2 (Dao 2023, arXiv 2307.08691): bfloat16 and float16, pages of 256 tokens.

Rotation and storing are ours; the cache has the layout that flash-attn reads. Legend as in ``base.py``.
"""

from __future__ import annotations

from importlib import import_module

import numpy as np
import torch
from numpy.typing import NDArray

from rlserve.engine.attention.base import StepLayout
from rlserve.engine.attention.device_paged import DevicePagedAttention, LayerCache
from rlserve.engine.attention.query_tiles import count_single
from rlserve.engine.models.base import ModelSpec
from rlserve.errors import UserError

PAGE_MULTIPLE = 256
"""flash-attn 2 reads pages of a multiple of this many tokens."""
MAX_HEAD_DIM = 256


class FlashAttention(DevicePagedAttention):
    """One call for the sequences of one token, one for chunks of prompts.

    Raises:
        UserError: a page size, head size or type that flash-attn 2 does not take.
    """

    def __init__(
        self, spec: ModelSpec, rotation_P2F: torch.Tensor, *, num_blocks: int, block_size: int, dtype: torch.dtype
    ) -> None:
        otherwise = "or use attention_backend=triton"
        if block_size % PAGE_MULTIPLE:
            raise UserError(
                f"attention_backend=flash needs a block_size that is a multiple of {PAGE_MULTIPLE}, "
                f"got {block_size}: set block_size={PAGE_MULTIPLE}, {otherwise}"
            )
        if dtype is torch.float32:
            raise UserError(f"attention_backend=flash does not compute in float32: set dtype=bfloat16, {otherwise}")
        if spec.head_dim > MAX_HEAD_DIM:
            raise UserError(
                f"attention_backend=flash takes heads of up to {MAX_HEAD_DIM}, the model has {spec.head_dim}: "
                "use attention_backend=triton"
            )
        self._flash_attn = import_module("flash_attn")
        super().__init__(spec, rotation_P2F, num_blocks=num_blocks, block_size=block_size, dtype=dtype)

    def num_words(self, num_sequences: int, table_width: int) -> int:
        return (num_sequences + 4) * (table_width + 5) + 4

    def _step_arrays(self, layout: StepLayout) -> list[NDArray[np.int32]]:
        self._num_single = count_single(layout.query_starts)
        contexts = layout.positions[layout.query_starts[1:] - 1] + 1
        chunk_starts = layout.query_starts[self._num_single :]
        self._longest_chunk = int(np.diff(chunk_starts).max(initial=0))
        self._longest_context = int(contexts[self._num_single :].max(initial=0))
        key_starts = np.cumsum([0, *contexts[self._num_single :]], dtype=np.int32)
        return [contexts, layout.block_tables[layout.table_rows], chunk_starts - self._num_single, key_starts]

    def _take_placed(self, layout: StepLayout, placed: list[torch.Tensor], *, is_captured: bool) -> None:
        self._contexts_S, self._tables, self._chunk_starts, self._key_starts = placed

    def _attend_cached(self, layer: int, qkv_TX: torch.Tensor, cache: LayerCache, out_TX: torch.Tensor) -> None:
        spec, num_single = self._spec, self._num_single
        keys, values, _, _ = cache
        query_TND = qkv_TX[:, : spec.query_size].view(-1, spec.num_heads, spec.head_dim)
        out_TND = out_TX.view(-1, spec.num_heads, spec.head_dim)
        window = spec.window(layer)
        options = {
            "softmax_scale": spec.score_scale,
            "causal": True,
            "window_size": (window - 1, 0) if window else (-1, -1),
            "softcap": spec.attention_softcap,
        }
        if num_single:
            attended_S1ND = self._flash_attn.flash_attn_with_kvcache(
                query_TND[:num_single].unsqueeze(1),
                keys,
                values,
                cache_seqlens=self._contexts_S[:num_single],
                block_table=self._tables[:num_single],
                **options,
            )
            out_TND[:num_single] = attended_S1ND.squeeze(1)
        if self._longest_chunk:
            out_TND[num_single:] = self._flash_attn.flash_attn_varlen_func(
                query_TND[num_single:],
                keys,
                values,
                cu_seqlens_q=self._chunk_starts,
                cu_seqlens_k=self._key_starts,
                max_seqlen_q=self._longest_chunk,
                max_seqlen_k=self._longest_context,
                block_table=self._tables[num_single:],
                **options,
            )
