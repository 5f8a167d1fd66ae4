"""Paged attention in plain PyTorch: the reference. It gathers the pages of one sequence at a time, so it is slow.

Legend as in ``base.py``, with C the tokens of one sequence in the cache and F = D / 2.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import ClassVar

import numpy as np
import torch
from torch.nn import functional as F

from rlserve.engine.attention.base import LEAST_TOP, AttentionBackend, StepLayout
from rlserve.engine.device.transfer import to_device
from rlserve.engine.models.base import ModelSpec
from rlserve.engine.models.rope import local_rotation_table

_Cache = tuple[torch.Tensor, ...]


class TorchPagedAttention(AttentionBackend):
    """Cache of one layer: keys and values, each [blocks, block_size, K, D]."""

    def __init__(
        self, spec: ModelSpec, rotation_P2F: torch.Tensor, *, num_blocks: int, block_size: int, dtype: torch.dtype
    ) -> None:
        self._spec = spec
        self._rotation_P2F = rotation_P2F
        self._device = rotation_P2F.device
        local_P2F = local_rotation_table(spec, len(rotation_P2F))
        self._local_rotation_P2F = rotation_P2F if local_P2F is None else local_P2F.to(self._device)
        self._block_size = block_size
        self._caches = [
            (self._new_cache(num_blocks, dtype), self._new_cache(num_blocks, dtype)) for _ in range(spec.num_layers)
        ]
        self._queries: list[tuple[int, int, torch.Tensor]] = []
        self._separates_tokens = False

    @staticmethod
    def block_bytes(spec: ModelSpec, block_size: int, dtype: torch.dtype) -> int:
        return 2 * spec.num_layers * block_size * spec.kv_size * dtype.itemsize

    def separate_tokens(self) -> None:
        self._separates_tokens = True

    def begin_step(self, layout: StepLayout) -> None:
        self._slots_T = to_device(layout.cache_slots, self._device)
        self._positions_T = to_device(layout.positions, self._device)
        positions = self._positions_T.long()
        self._rotation_T2F = self._local_rotation_T2F = self._rotation_P2F[positions]
        if self._local_rotation_P2F is not self._rotation_P2F:
            self._local_rotation_T2F = self._local_rotation_P2F[positions]
        self._queries = list(self._split(layout))

    def attend(
        self,
        layer: int,
        qkv_TX: torch.Tensor,
        query_norm_D: torch.Tensor | None,
        key_norm_D: torch.Tensor | None,
        out_TX: torch.Tensor,
    ) -> None:
        spec = self._spec
        heads_TXD = qkv_TX.view(len(qkv_TX), -1, spec.head_dim)
        query_TND, key_TKD, value_TKD = torch.split(
            heads_TXD, [spec.num_heads, spec.num_kv_heads, spec.num_kv_heads], dim=1
        )
        window = spec.window(layer)
        rotation_T2F = self._local_rotation_T2F if window else self._rotation_T2F
        query_TND = _rotate(self._norm(query_TND, query_norm_D), rotation_T2F)
        keys, values = self._caches[layer]
        self._write(keys, _rotate(self._norm(key_TKD, key_norm_D), rotation_T2F))
        self._write(values, value_TKD)
        for begin, end, slots_C in self._queries:
            distance_TC = self._positions_T[begin:end, None] - torch.arange(len(slots_C), device=self._device)
            visible_TC = (distance_TC >= 0) & (distance_TC < window) if window else distance_TC >= 0
            attended_NTD = self._attend_sequence(
                query_TND[begin:end].transpose(0, 1),
                self._read(keys, slots_C, qkv_TX.dtype).transpose(0, 1),
                self._read(values, slots_C, qkv_TX.dtype).transpose(0, 1),
                visible_TC,
            )
            out_TX[begin:end] = attended_NTD.transpose(0, 1).reshape(end - begin, -1)

    def _new_cache(self, num_blocks: int, dtype: torch.dtype) -> _Cache:
        """Of the keys or of the values of one layer."""
        shape = (num_blocks, self._block_size, self._spec.num_kv_heads, self._spec.head_dim)
        return (torch.empty(shape, dtype=dtype, device=self._device),)

    def _write(self, cache: _Cache, heads_TKD: torch.Tensor) -> None:
        cache[0].flatten(0, 1)[self._slots_T] = heads_TKD

    def _read(self, cache: _Cache, slots_C: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """[C, K, D]"""
        return cache[0].flatten(0, 1)[slots_C]

    def _tensors(self) -> Iterator[torch.Tensor]:
        return (tensor for pair in self._caches for cache in pair for tensor in cache)

    def _split(self, layout: StepLayout) -> Iterator[tuple[int, int, torch.Tensor]]:
        """First token, end and cache slots [C] of what is computed at once: a sequence, or a token."""
        starts = layout.query_starts.tolist()
        for sequence, (begin, end) in enumerate(pairwise(starts)):
            slots_C = self._slots_of(layout, sequence)
            if not self._separates_tokens:
                yield begin, end, slots_C
                continue
            for token in range(begin, end):
                yield token, token + 1, slots_C[: int(layout.positions[token]) + 1]

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


class QuantisedTorchPagedAttention(TorchPagedAttention):
    """Keys and values in one byte, with a float32 scale of each token and head, [blocks, block_size, K, 1]."""

    _stored: ClassVar[torch.dtype]
    _largest: ClassVar[float]
    """What the largest element of a token and head is stored as."""

    @staticmethod
    def block_bytes(spec: ModelSpec, block_size: int, dtype: torch.dtype) -> int:
        scales = 2 * spec.num_layers * block_size * spec.num_kv_heads * torch.float32.itemsize
        return TorchPagedAttention.block_bytes(spec, block_size, torch.int8) + scales

    def _new_cache(self, num_blocks: int, dtype: torch.dtype) -> _Cache:
        scales = torch.empty(num_blocks, self._block_size, self._spec.num_kv_heads, 1, device=self._device)
        return (*super()._new_cache(num_blocks, self._stored), scales)

    def _write(self, cache: _Cache, heads_TKD: torch.Tensor) -> None:
        heads_TKD = heads_TKD.float()
        top_TK1 = heads_TKD.abs().amax(dim=-1, keepdim=True).clamp_min(LEAST_TOP)
        scaled_TKD = heads_TKD * (self._largest / top_TK1)
        rounded_TKD = scaled_TKD if self._stored.is_floating_point else scaled_TKD.round()
        stored, scales = (tensor.flatten(0, 1) for tensor in cache)
        stored[self._slots_T] = rounded_TKD.to(self._stored)
        scales[self._slots_T] = top_TK1 / self._largest

    def _read(self, cache: _Cache, slots_C: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        stored, scales = (tensor.flatten(0, 1) for tensor in cache)
        return (stored[slots_C].float() * scales[slots_C]).to(dtype)


class Int8TorchPagedAttention(QuantisedTorchPagedAttention):
    """From -127 to 127."""

    _stored = torch.int8
    _largest = 127.0


class Fp8TorchPagedAttention(QuantisedTorchPagedAttention):
    """The e4m3 of GPUs (Micikevicius et al. 2022, arXiv 2209.05433): four bits of exponent, three of mantissa."""

    _stored = torch.float8_e4m3fn
    _largest = 448.0


def _rotate(heads_TXD: torch.Tensor, rotation_T2F: torch.Tensor) -> torch.Tensor:
    cos_T1F, sin_T1F = rotation_T2F[:, :1], rotation_T2F[:, 1:]
    first, second = heads_TXD.float().chunk(2, dim=-1)
    rotated = (first * cos_T1F - second * sin_T1F, second * cos_T1F + first * sin_T1F)
    return torch.cat(rotated, dim=-1).to(heads_TXD.dtype)
