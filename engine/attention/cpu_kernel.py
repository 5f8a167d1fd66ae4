"""Paged attention as one compiled call per layer: it reads the pages where they are and gathers nothing.

Legend as in ``base.py``; W and E are block_size and D rounded up to the 16 lanes of a vector; U is how many numbers a
product takes at once, 2 of bfloat16 and else 1.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator

import torch

from rlserve.engine.attention.base import AttentionBackend, StepLayout
from rlserve.engine.models.base import ModelSpec
from rlserve.engine.models.rope import local_rotation_table
from rlserve.native.attention import LayerCache, StepArguments, cache_elements, round_up
from rlserve.native.huge_pages import advise_huge_pages
from rlserve.native.library import load_library
from rlserve.native.page_filling import fill_pages


class CpuKernelAttention(AttentionBackend):
    """Cache of one layer: keys [blocks, K, D / U, W, U] and values [blocks, K, block_size / U, E, U]."""

    _function = "attend"

    def __init__(
        self, spec: ModelSpec, rotation_P2F: torch.Tensor, *, num_blocks: int, block_size: int, dtype: torch.dtype
    ) -> None:
        local_P2F = local_rotation_table(spec, len(rotation_P2F))
        self._rotation_P2F = rotation_P2F.contiguous()
        self._local_rotation_P2F = self._rotation_P2F if local_P2F is None else local_P2F.contiguous()
        self._attend = getattr(
            load_library(), f"{self._function}_{'float32' if dtype is torch.float32 else 'bfloat16'}"
        )
        self._caches = [self._new_cache(spec, num_blocks, block_size, dtype) for _ in range(spec.num_layers)]
        self._layer_caches = [LayerCache() for _ in self._caches]
        self._note_memory()
        windows = [spec.window(layer) for layer in range(spec.num_layers)]
        self._arguments = {window: self._fixed_arguments(spec, block_size, window) for window in set(windows)}
        self._steps = [ctypes.addressof(self._arguments[window]) for window in windows]
        self._layout: StepLayout | None = None

    @staticmethod
    def block_bytes(spec: ModelSpec, block_size: int, dtype: torch.dtype) -> int:
        elements = sum(cache_elements(spec.num_kv_heads, spec.head_dim, block_size, dtype))
        return spec.num_layers * elements * dtype.itemsize

    def separate_tokens(self) -> None:
        """Nothing to do: the kernel sums up each row in an order that does not depend on its tile."""

    def begin_step(self, layout: StepLayout) -> None:
        self._layout = layout  # keeps the arrays alive that the arguments point to
        for arguments in self._arguments.values():
            arguments.num_tokens, arguments.num_sequences = layout.num_tokens, layout.num_sequences
            arguments.table_width = layout.block_tables.shape[1]
            arguments.positions = layout.positions.ctypes.data
            arguments.cache_slots = layout.cache_slots.ctypes.data
            arguments.query_starts = layout.query_starts.ctypes.data
            arguments.table_rows = layout.table_rows.ctypes.data
            arguments.block_tables = layout.block_tables.ctypes.data

    def attend(
        self,
        layer: int,
        qkv_TX: torch.Tensor,
        query_norm_D: torch.Tensor | None,
        key_norm_D: torch.Tensor | None,
        out_TX: torch.Tensor,
    ) -> None:
        self._attend(
            self._steps[layer],
            qkv_TX.data_ptr(),
            None if query_norm_D is None else query_norm_D.data_ptr(),
            None if key_norm_D is None else key_norm_D.data_ptr(),
            ctypes.addressof(self._layer_caches[layer]),
            out_TX.data_ptr(),
            torch.get_num_threads(),
        )

    def pointers(self, layer: int) -> tuple[int, int]:
        """Where the step's arguments and the cache of a layer are described: the same places for ever."""
        return self._steps[layer], ctypes.addressof(self._layer_caches[layer])

    def restore(self) -> None:
        super().restore()
        self._note_memory()

    def _new_cache(
        self, spec: ModelSpec, num_blocks: int, block_size: int, dtype: torch.dtype
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """Keys, values and scales of one layer."""
        num_keys, num_values = cache_elements(spec.num_kv_heads, spec.head_dim, block_size, dtype)
        return torch.empty(num_blocks, num_keys, dtype=dtype), torch.empty(num_blocks, num_values, dtype=dtype), None

    def _note_memory(self) -> None:
        for tensor in self._tensors():
            advise_huge_pages(tensor)
        fill_pages(self._tensors())
        for place, (keys, values, scales) in zip(self._layer_caches, self._caches, strict=True):
            place.keys, place.values = keys.data_ptr(), values.data_ptr()
            place.scales = None if scales is None else scales.data_ptr()

    def _tensors(self) -> Iterator[torch.Tensor]:
        return (tensor for cache in self._caches for tensor in cache if tensor is not None)

    def _fixed_arguments(self, spec: ModelSpec, block_size: int, window: int) -> StepArguments:
        rotation_P2F = self._local_rotation_P2F if window else self._rotation_P2F
        return StepArguments(
            num_heads=spec.num_heads,
            num_kv_heads=spec.num_kv_heads,
            head_dim=spec.head_dim,
            block_size=block_size,
            window=window,
            eps=spec.rms_norm_eps,
            scale=spec.score_scale,
            softcap=spec.attention_softcap,
            norm_offset=spec.norm_offset,
            rotation=rotation_P2F.data_ptr(),
        )


class Int8CpuKernelAttention(CpuKernelAttention):
    """Keys and values as int8, with a scale of each token and head: about half the memory of bfloat16.

    Scales of one layer: float32 [blocks, K, 2, W], of keys, then of values.
    """

    _function = "attend_int8"

    @staticmethod
    def block_bytes(spec: ModelSpec, block_size: int, dtype: torch.dtype) -> int:
        scales = 2 * round_up(block_size) * torch.float32.itemsize
        return (
            CpuKernelAttention.block_bytes(spec, block_size, torch.int8) + spec.num_layers * spec.num_kv_heads * scales
        )

    def _new_cache(
        self, spec: ModelSpec, num_blocks: int, block_size: int, dtype: torch.dtype
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        keys, values, _ = super()._new_cache(spec, num_blocks, block_size, torch.int8)
        return keys, values, torch.empty(num_blocks, spec.num_kv_heads, 2, round_up(block_size))
