"""What the attention backends of a GPU share: the cache, and the program that rotates and stores.

Legend as in ``base.py``.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from typing import ClassVar

import numpy as np
import torch
import triton
from numpy.typing import NDArray

from rlserve.engine.attention.base import AttentionBackend, StepLayout
from rlserve.engine.attention.paged_programs import rotate_and_store
from rlserve.engine.device.transfer import upload
from rlserve.engine.models.base import ModelSpec
from rlserve.engine.models.rope import local_rotation_table
from rlserve.errors import UserError

LayerCache = tuple[torch.Tensor, torch.Tensor, torch.Tensor | None, torch.Tensor | None]
"""Keys, values, and the scales of both."""


class DevicePagedAttention(AttentionBackend):
    """Cache of one layer: keys and values, each [blocks, block_size, K, D], and if they are quantised the scales of
    both, each [blocks, block_size, K]. A token of slot -1 is not stored."""

    _stored: ClassVar[torch.dtype | None] = None
    """The type of a quantised cache."""
    _largest: ClassVar[float] = 0.0
    """What the largest element of a token and head is quantised to."""

    def __init__(
        self, spec: ModelSpec, rotation_P2F: torch.Tensor, *, num_blocks: int, block_size: int, dtype: torch.dtype
    ) -> None:
        assert num_blocks * block_size < 2**31, "slots are numbered in 32 bits"
        if self._stored is not None and dtype is torch.float16:
            # A small weight times a small scale is none of float16's numbers any more.
            raise UserError("a quantised kv_cache_dtype is not for dtype=float16 on a GPU: set dtype=bfloat16")
        self._spec = spec
        self._block_size = block_size
        self._device = rotation_P2F.device
        local_P2F = local_rotation_table(spec, len(rotation_P2F))
        self._rotation_P2F = rotation_P2F.contiguous()
        self._local_rotation_P2F = self._rotation_P2F if local_P2F is None else local_P2F.to(self._device).contiguous()
        shape = (num_blocks, block_size, spec.num_kv_heads, spec.head_dim)
        self._caches = [self._new_cache(shape, dtype) for _ in range(spec.num_layers)]

    @classmethod
    def block_bytes(cls, spec: ModelSpec, block_size: int, dtype: torch.dtype) -> int:
        head_bytes = spec.head_dim * (cls._stored or dtype).itemsize
        if cls._stored is not None:
            head_bytes += torch.float32.itemsize
        return 2 * spec.num_layers * block_size * spec.num_kv_heads * head_bytes

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
        keys, values, key_scales, value_scales = cache = self._caches[layer]
        rotate_and_store[len(qkv_TX), spec.num_heads + 2 * spec.num_kv_heads](
            qkv_TX,
            query_norm_D,
            key_norm_D,
            self._local_rotation_P2F if spec.window(layer) else self._rotation_P2F,
            self._positions_T,
            self._slots_T,
            keys,
            values,
            key_scales,
            value_scales,
            spec.rms_norm_eps,
            NUM_HEADS=spec.num_heads,
            NUM_KV_HEADS=spec.num_kv_heads,
            HEAD_DIM=spec.head_dim,
            HALF_BLOCK=triton.next_power_of_2(spec.head_dim // 2),
            HAS_NORM=query_norm_D is not None,
            NORM_OFFSET=spec.norm_offset,
            LARGEST=self._largest,
            num_warps=1,
        )
        self._attend_cached(layer, qkv_TX, cache, out_TX)

    def _tensors(self) -> Iterator[torch.Tensor]:
        return (tensor for cache in self._caches for tensor in cache if tensor is not None)

    def _new_cache(self, shape: tuple[int, ...], dtype: torch.dtype) -> LayerCache:
        keys, values = (torch.empty(shape, dtype=self._stored or dtype, device=self._device) for _ in range(2))
        if self._stored is None:
            return keys, values, None, None
        key_scales, value_scales = (torch.empty(shape[:-1], device=self._device) for _ in range(2))
        return keys, values, key_scales, value_scales

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
    def _attend_cached(self, layer: int, qkv_TX: torch.Tensor, cache: LayerCache, out_TX: torch.Tensor) -> None:
        """Attend with queries that are rotated to keys and values that are stored."""
