"""Paged attention in Triton: any page size, any head size up to 256, float32, bfloat16 and float16.

A step is at most two launches a layer, of one program:

    tokens   [ one a sequence, from the first on ............ | chunks of prompts, in query tiles .. ]
    launch     packs the heads of a group; few sequences       64 rows of (token, head of a group)
               with long contexts are split over programs      a tile, keys 32 or 64 at a time
               (split-K) and joined by a second program

Legend as in ``base.py``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import triton
from numpy.typing import NDArray

from rlserve.engine.attention.base import StepLayout
from rlserve.engine.attention.device_paged import DevicePagedAttention, LayerCache
from rlserve.engine.attention.paged_programs import attend_pages, join_splits
from rlserve.engine.attention.query_tiles import count_single, count_splits, query_tiles
from rlserve.engine.models.base import ModelSpec
from rlserve.errors import UserError

_PREFILL_ROWS = 64
_DECODE_ROWS = 16
"""The least that a tensor core multiplies."""
_FP8_CAPABILITY = (8, 9)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Split:
    """Where the programs of a split leave their parts; one program to a context needs nothing."""

    num_splits: int = 1
    partial: torch.Tensor | None = None
    """[S, N, splits, D] float32"""
    peak: torch.Tensor | None = None
    """[S, N, splits]"""
    total: torch.Tensor | None = None
    """[S, N, splits]"""


_WHOLE = _Split()


class TritonPagedAttention(DevicePagedAttention):
    """See the module."""

    def __init__(
        self, spec: ModelSpec, rotation_P2F: torch.Tensor, *, num_blocks: int, block_size: int, dtype: torch.dtype
    ) -> None:
        super().__init__(spec, rotation_P2F, num_blocks=num_blocks, block_size=block_size, dtype=dtype)
        self._dtype = dtype
        on_gpu = self._device.type == "cuda"
        self._num_multiprocessors = (
            torch.cuda.get_device_properties(self._device).multi_processor_count if on_gpu else 8
        )
        self._group = spec.num_heads // spec.num_kv_heads
        self._prefill_rows = max(_PREFILL_ROWS, triton.next_power_of_2(self._group))

    def num_words(self, num_sequences: int, table_width: int) -> int:
        return (num_sequences + 4) * (table_width + 2) + 4

    def _step_arrays(self, layout: StepLayout) -> list[NDArray[np.int32]]:
        width = int(layout.positions.max()) // self._block_size + 1
        tables = layout.block_tables[layout.table_rows, :width]
        header = np.array([width, 0, 0, 0], dtype=np.int32)
        self._num_single = count_single(layout.query_starts)
        tiles = query_tiles(layout.query_starts, self._num_single, self._prefill_rows // self._group)
        return [tiles, np.concatenate([header, tables.ravel()])]

    def _take_placed(self, layout: StepLayout, placed: list[torch.Tensor], *, is_captured: bool) -> None:
        self._tiles, self._tables = placed
        contexts = layout.positions[: self._num_single]
        # A graph is replayed for contexts of any length, up to those that the model's tables have room for.
        longest = layout.block_tables.shape[1] * self._block_size if is_captured else int(contexts.max(initial=0)) + 1
        num_programs = self._num_single * self._spec.num_kv_heads
        self._num_splits = count_splits(num_programs, longest, self._num_multiprocessors)

    def _attend_cached(self, layer: int, qkv_TX: torch.Tensor, cache: LayerCache, out_TX: torch.Tensor) -> None:
        if self._num_single:
            self._attend_single(layer, qkv_TX, cache, out_TX)
        if self._tiles.numel():
            tensors = (qkv_TX, *cache, out_TX)
            self._launch(layer, tensors, num_tiles=self._tiles.shape[1], is_single=False)

    def _attend_single(self, layer: int, qkv_TX: torch.Tensor, cache: LayerCache, out_TX: torch.Tensor) -> None:
        spec, num_splits = self._spec, self._num_splits
        tensors = (qkv_TX, *cache, out_TX)
        if num_splits == 1:
            self._launch(layer, tensors, num_tiles=self._num_single, is_single=True)
            return
        shape = (self._num_single, spec.num_heads, num_splits)
        partial = torch.empty(*shape, spec.head_dim, dtype=torch.float32, device=self._device)
        peak, total = torch.empty(2, *shape, dtype=torch.float32, device=self._device)
        split = _Split(num_splits=num_splits, partial=partial, peak=peak, total=total)
        self._launch(layer, tensors, num_tiles=self._num_single, is_single=True, split=split)
        join_splits[self._num_single, spec.num_heads](
            partial,
            peak,
            total,
            out_TX,
            NUM_HEADS=spec.num_heads,
            HEAD_DIM=spec.head_dim,
            BLOCK_D=triton.next_power_of_2(spec.head_dim),
            NUM_SPLITS=num_splits,
            num_warps=2,
        )

    def _launch(
        self,
        layer: int,
        tensors: tuple[torch.Tensor | None, ...],
        *,
        num_tiles: int,
        is_single: bool,
        split: _Split = _WHOLE,
    ) -> None:
        spec = self._spec
        is_wide = spec.head_dim > 128 or self._dtype is torch.float32
        least_rows = _DECODE_ROWS if is_single else self._prefill_rows
        attend_pages[num_tiles, spec.num_kv_heads, split.num_splits](
            *tensors,
            split.partial,
            split.peak,
            split.total,
            self._positions_T,
            self._tiles,
            self._tables,
            num_tiles,
            spec.score_scale,
            spec.attention_softcap,
            NUM_HEADS=spec.num_heads,
            NUM_KV_HEADS=spec.num_kv_heads,
            HEAD_DIM=spec.head_dim,
            BLOCK_D=max(16, triton.next_power_of_2(spec.head_dim)),
            PAGE_SIZE=self._block_size,
            BLOCK_M=max(least_rows, triton.next_power_of_2(self._group)),
            TILE=32 if is_single or is_wide else 64,
            WINDOW=spec.window(layer),
            HAS_SOFTCAP=spec.attention_softcap > 0,
            IS_QUANTISED=self._stored is not None,
            SINGLE=is_single,
            NUM_SPLITS=split.num_splits,
            num_warps=4,
            num_stages=2 if is_wide else 3,
        )


class Int8TritonPagedAttention(TritonPagedAttention):
    """Keys and values as int8 from -127 to 127, with a scale of each token and head."""

    _stored = torch.int8
    _largest = 127.0


class Fp8TritonPagedAttention(TritonPagedAttention):
    """Keys and values as e4m3 (Micikevicius et al. 2022, arXiv 2209.05433), with a scale of each token and head.

    Raises:
        UserError: the GPU does not convert to this type.
    """

    _stored = torch.float8_e4m3fn
    _largest = 448.0

    def __init__(
        self, spec: ModelSpec, rotation_P2F: torch.Tensor, *, num_blocks: int, block_size: int, dtype: torch.dtype
    ) -> None:
        if rotation_P2F.device.type == "cuda":
            check_fp8(torch.cuda.get_device_capability(rotation_P2F.device))
        super().__init__(spec, rotation_P2F, num_blocks=num_blocks, block_size=block_size, dtype=dtype)


def check_fp8(capability: tuple[int, int]) -> None:
    """Raise UserError for a compute capability that does not know e4m3."""
    if capability < _FP8_CAPABILITY:
        found, needed = (".".join(map(str, pair)) for pair in (capability, _FP8_CAPABILITY))
        raise UserError(
            f"kv_cache_dtype=fp8 needs a GPU of compute capability {needed} or later, this one has {found}: "
            "use kv_cache_dtype=int8"
        )
