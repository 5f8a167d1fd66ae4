"""What the attention backends of a GPU share: the cache, and the program that rotates and stores.

Legend as in ``base.py``.
"""

from __future__ import annotations

from abc import abstractmethod

import numpy as np
import torch
import triton
from numpy.typing import NDArray

from rlserve.engine.attention.base import AttentionBackend, StepLayout
from rlserve.engine.attention.triton_kernels import rotate_and_store
from rlserve.engine.device import upload
from rlserve.engine.models.base import ModelSpec
from rlserve.engine.models.rope import local_rotation_table


class DevicePagedAttention(AttentionBackend):
    """Cache of one layer: keys and values, each [blocks, block_size, K, D]. A token of slot -1 is not stored."""

    def __init__(
        self, spec: ModelSpec, rotation_P2F: torch.Tensor, *, num_blocks: int, block_size: int, dtype: torch.dtype
    ) -> None:
        assert num_blocks * block_size < 2**31, "slots are numbered in 32 bits"
        self._spec = spec
        self._block_size = block_size
        self._device = rotation_P2F.device
        local_P2F = local_rotation_table(spec, len(rotation_P2F))
        self._rotation_P2F = rotation_P2F.contiguous()
        self._local_rotation_P2F = self._rotation_P2F if local_P2F is None else local_P2F.to(self._device).contiguous()
        shape = (num_blocks, block_size, spec.num_kv_heads, spec.head_dim)
        self._caches = [
            (torch.empty(shape, dtype=dtype, device=self._device), torch.empty(shape, dtype=dtype, device=self._device))
            for _ in range(spec.num_layers)
        ]

    @staticmethod
    def block_bytes(spec: ModelSpec, block_size: int, dtype: torch.dtype) -> int:
        return 2 * spec.num_layers * block_size * spec.kv_size * dtype.itemsize

    def begin_step(self, layout: StepLayout) -> None:
        self._place(layout, None)

    def begin_captured_step(self, layout: StepLayout, memory: torch.Tensor) -> None:
        """Like ``begin_step``, for a step of one token a sequence. What the layers read lies in ``memory``, int32,
        at places that the number of sequences alone decides: a CUDA graph of the layers can be replayed for it."""
        assert layout.num_tokens == layout.num_sequences
        self._place(layout, memory)

    @abstractmethod
    def num_words(self, num_sequences: int, table_width: int) -> int:
        """Elements of the memory that a captured step takes at most."""

    def attend(
        self,
        layer: int,
        qkv_TX: torch.Tensor,
        query_norm_D: torch.Tensor | None,
        key_norm_D: torch.Tensor | None,
        out_TX: torch.Tensor,
    ) -> None:
        spec = self._spec
        keys, values = self._caches[layer]
        rotate_and_store[len(qkv_TX), spec.num_heads + 2 * spec.num_kv_heads](
            qkv_TX,
            query_norm_D,
            key_norm_D,
            self._local_rotation_P2F if spec.window(layer) else self._rotation_P2F,
            self._positions_T,
            self._slots_T,
            keys,
            values,
            spec.rms_norm_eps,
            NUM_HEADS=spec.num_heads,
            NUM_KV_HEADS=spec.num_kv_heads,
            HEAD_DIM=spec.head_dim,
            HALF_BLOCK=triton.next_power_of_2(spec.head_dim // 2),
            HAS_NORM=query_norm_D is not None,
            NORM_OFFSET=spec.norm_offset,
            num_warps=1,
        )
        self._attend_cached(layer, qkv_TX, keys, values, out_TX)

    def copy_blocks(self, sources: list[int], targets: list[int]) -> None:
        source, target = upload([np.array(sources, dtype=np.int32), np.array(targets, dtype=np.int32)], self._device)
        for cache in (tensor for pair in self._caches for tensor in pair):
            cache.index_copy_(0, target.long(), cache.index_select(0, source))

    def release(self) -> None:
        for cache in (tensor for pair in self._caches for tensor in pair):
            cache.untyped_storage().resize_(0)

    def restore(self) -> None:
        for cache in (tensor for pair in self._caches for tensor in pair):
            cache.untyped_storage().resize_(cache.numel() * cache.element_size())

    def _place(self, layout: StepLayout, memory: torch.Tensor | None) -> None:
        arrays = [layout.positions, layout.cache_slots.astype(np.int32), *self._step_arrays(layout)]
        self._positions_T, self._slots_T, *placed = upload(arrays, self._device, memory)
        self._take_placed(layout, placed, is_captured=memory is not None)

    @abstractmethod
    def _step_arrays(self, layout: StepLayout) -> list[NDArray[np.int32]]:
        """What the backend needs on the device, beside positions and slots."""

    @abstractmethod
    def _take_placed(self, layout: StepLayout, placed: list[torch.Tensor], *, is_captured: bool) -> None:
        """Keep ``placed``, the arrays of ``_step_arrays`` on the device, for the layers."""

    @abstractmethod
    def _attend_cached(
        self, layer: int, qkv_TX: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, out_TX: torch.Tensor
    ) -> None:
        """Attend with queries that are rotated to keys and values that are stored."""
