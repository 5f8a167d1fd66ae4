"""Paged attention in plain PyTorch: the reference. It gathers the pages of one sequence at a time, so it is slow.

Legend as in ``base.py``, with C the tokens of one sequence in the cache and F = D / 2.
"""

from __future__ import annotations

import numpy as np
import torch
from torch.nn import functional as F

from rlserve.engine.attention.base import AttentionBackend, StepLayout
from rlserve.engine.device import to_device
from rlserve.engine.models.base import ModelSpec
from rlserve.engine.models.rope import local_rotation_table


class TorchPagedAttention(AttentionBackend):
    """Cache of one layer: keys and values, each [blocks * block_size, K, D]."""

    def __init__(
        self, spec: ModelSpec, rotation_P2F: torch.Tensor, *, num_blocks: int, block_size: int, dtype: torch.dtype
    ) -> None:
        self._spec = spec
        self._rotation_P2F = rotation_P2F
        self._device = rotation_P2F.device
        local_P2F = local_rotation_table(spec, len(rotation_P2F))
        self._local_rotation_P2F = rotation_P2F if local_P2F is None else local_P2F.to(self._device)
        self._block_size = block_size
        shape = (num_blocks * block_size, spec.num_kv_heads, spec.head_dim)
        self._caches = [
            (torch.empty(shape, dtype=dtype, device=self._device), torch.empty(shape, dtype=dtype, device=self._device))
            for _ in range(spec.num_layers)
        ]
        self._layout: StepLayout | None = None

    @staticmethod
    def block_bytes(spec: ModelSpec, block_size: int, dtype: torch.dtype) -> int:
        return 2 * spec.num_layers * block_size * spec.kv_size * dtype.itemsize

    def begin_step(self, layout: StepLayout) -> None:
        self._layout = layout
        self._slots_T = to_device(layout.cache_slots, self._device)
        self._positions_T = to_device(layout.positions, self._device)
        positions = self._positions_T.long()
        self._rotation_T2F = self._local_rotation_T2F = self._rotation_P2F[positions]
        if self._local_rotation_P2F is not self._rotation_P2F:
            self._local_rotation_T2F = self._local_rotation_P2F[positions]
        self._cached_slots = [self._slots_of(layout, sequence) for sequence in range(layout.num_sequences)]

    def attend(
        self,
        layer: int,
        qkv_TX: torch.Tensor,
        query_norm_D: torch.Tensor | None,
        key_norm_D: torch.Tensor | None,
        out_TX: torch.Tensor,
    ) -> None:
        assert self._layout is not None
        spec = self._spec
        heads_TXD = qkv_TX.view(len(qkv_TX), -1, spec.head_dim)
        query_TND, key_TKD, value_TKD = torch.split(
            heads_TXD, [spec.num_heads, spec.num_kv_heads, spec.num_kv_heads], dim=1
        )
        window = spec.window(layer)
        rotation_T2F = self._local_rotation_T2F if window else self._rotation_T2F
        query_TND = _rotate(self._norm(query_TND, query_norm_D), rotation_T2F)
        keys, values = self._caches[layer]
        keys[self._slots_T] = _rotate(self._norm(key_TKD, key_norm_D), rotation_T2F)
        values[self._slots_T] = value_TKD
        starts = self._layout.query_starts.tolist()
        for begin, end, slots_C in zip(starts[:-1], starts[1:], self._cached_slots, strict=True):
            distance_TC = self._positions_T[begin:end, None] - torch.arange(len(slots_C), device=self._device)
            visible_TC = (distance_TC >= 0) & (distance_TC < window) if window else distance_TC >= 0
            attended_NTD = self._attend_sequence(
                query_TND[begin:end].transpose(0, 1),
                keys[slots_C].transpose(0, 1),
                values[slots_C].transpose(0, 1),
                visible_TC,
            )
            out_TX[begin:end] = attended_NTD.transpose(0, 1).reshape(end - begin, -1)

    def copy_blocks(self, sources: list[int], targets: list[int]) -> None:
        offsets = torch.arange(self._block_size)
        source_slots = (torch.tensor(sources)[:, None] * self._block_size + offsets).flatten()
        target_slots = (torch.tensor(targets)[:, None] * self._block_size + offsets).flatten()
        for cache in (tensor for pair in self._caches for tensor in pair):
            cache[target_slots] = cache[source_slots]

    def release(self) -> None:
        for cache in (tensor for pair in self._caches for tensor in pair):
            cache.untyped_storage().resize_(0)

    def restore(self) -> None:
        for cache in (tensor for pair in self._caches for tensor in pair):
            cache.untyped_storage().resize_(cache.numel() * cache.element_size())

    def _slots_of(self, layout: StepLayout, sequence: int) -> torch.Tensor:
        """[C] cache slots of everything the sequence has after this step, in order of position."""
        num_cached = int(layout.positions[layout.query_starts[sequence + 1] - 1]) + 1
        num_blocks = -(-num_cached // self._block_size)
        blocks = layout.block_tables[layout.table_rows[sequence], :num_blocks].astype(np.int64)
        slots = blocks[:, None] * self._block_size + np.arange(self._block_size)
        return to_device(slots.ravel()[:num_cached], self._device)

    def _attend_sequence(
        self, query_NTD: torch.Tensor, keys_KCD: torch.Tensor, values_KCD: torch.Tensor, visible_TC: torch.Tensor
    ) -> torch.Tensor:
        spec = self._spec
        if not spec.attention_softcap:
            return F.scaled_dot_product_attention(
                query_NTD, keys_KCD, values_KCD, attn_mask=visible_TC, scale=spec.score_scale, enable_gqa=True
            )
        group = spec.num_heads // spec.num_kv_heads
        scores_NTC = query_NTD.float() @ keys_KCD.float().repeat_interleave(group, dim=0).transpose(1, 2)
        capped_NTC = spec.attention_softcap * (scores_NTC * (spec.score_scale / spec.attention_softcap)).tanh()
        weights_NTC = capped_NTC.masked_fill(~visible_TC, -torch.inf).softmax(dim=-1)
        return (weights_NTC @ values_KCD.float().repeat_interleave(group, dim=0)).to(query_NTD.dtype)

    def _norm(self, heads_TXD: torch.Tensor, weight_D: torch.Tensor | None) -> torch.Tensor:
        if weight_D is None:
            return heads_TXD
        wide = heads_TXD.float()
        normed = wide * torch.rsqrt(wide.pow(2).mean(dim=-1, keepdim=True) + self._spec.rms_norm_eps)
        if self._spec.norm_offset:
            return (normed * (weight_D.float() + self._spec.norm_offset)).to(heads_TXD.dtype)
        return normed.to(heads_TXD.dtype) * weight_D


def _rotate(heads_TXD: torch.Tensor, rotation_T2F: torch.Tensor) -> torch.Tensor:
    cos_T1F, sin_T1F = rotation_T2F[:, :1], rotation_T2F[:, 1:]
    first, second = heads_TXD.float().chunk(2, dim=-1)
    rotated = (first * cos_T1F - second * sin_T1F, second * cos_T1F + first * sin_T1F)
    return torch.cat(rotated, dim=-1).to(heads_TXD.dtype)
