"""The contract of an attention backend. A backend owns the layout of the KV cache that it reads and writes.

Legend: T tokens of a step, S sequences of a step, N query heads, K key-value heads, D head size.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from rlserve.engine.device.transfer import upload
from rlserve.engine.models.base import ModelSpec
from rlserve.errors import UserError

LEAST_TOP = 1e-30
"""The largest element of a quantised key or value counts as this much at least: one of nothing but zeros has a scale
too."""


@dataclass(frozen=True, kw_only=True, eq=False)
class StepLayout:
    """Where the tokens of one step belong. Tokens of a sequence are neighbours, in order of position."""

    token_ids: NDArray[np.int64]
    """[T]"""
    positions: NDArray[np.int32]
    """[T] from 0 in each sequence."""
    cache_slots: NDArray[np.int64]
    """[T] block * block_size + offset: where the token's key and value go."""
    query_starts: NDArray[np.int32]
    """[S + 1] first token of each sequence, and T."""
    table_rows: NDArray[np.int32]
    """[S] row of each sequence in ``block_tables``."""
    block_tables: NDArray[np.int32]
    """[rows, blocks] the block that holds positions i * block_size and on. Entries past the end are undefined."""
    num_decoding: int = 0
    """The first so many sequences have one token each, the one drawn last for their row, which the host may not know
    yet: with ``LastTokens`` it is taken from there."""

    @property
    def num_tokens(self) -> int:
        """T."""
        return len(self.token_ids)

    @property
    def num_sequences(self) -> int:
        """S."""
        return len(self.table_rows)


class AttentionBackend(ABC):
    """Rotary embedding, KV cache and causal attention of all layers of one model."""

    @abstractmethod
    def __init__(
        self, spec: ModelSpec, rotation_P2F: torch.Tensor, *, num_blocks: int, block_size: int, dtype: torch.dtype
    ) -> None:
        """Allocate the cache, not initialised: nothing is read that was not written, so pages never used cost no
        memory. ``rotation_P2F`` is [positions, 2, D / 2]: cosines and sines, float32; the cache goes to its device.
        Layers with a window may rotate by ``local_rotation_table`` instead."""

    @staticmethod
    @abstractmethod
    def block_bytes(spec: ModelSpec, block_size: int, dtype: torch.dtype) -> int:
        """Bytes that one block takes, all layers together."""

    def separate_tokens(self) -> None:
        """Compute from now on so that what a token gets does not depend, to the bit, on what it is computed with.

        Raises:
            UserError: the backend cannot.
        """
        raise UserError("deterministic=true is only for attention_backend cpu and torch")

    @abstractmethod
    def begin_step(self, layout: StepLayout) -> None:
        """Take the layout of the step; ``attend`` is then called once per layer."""

    @abstractmethod
    def attend(
        self,
        layer: int,
        qkv_TX: torch.Tensor,
        query_norm_D: torch.Tensor | None,
        key_norm_D: torch.Tensor | None,
        out_TX: torch.Tensor,
    ) -> None:
        """Normalise (where norms are given) and rotate queries and keys, write keys and values to the cache,
        and attend from each token to everything in its sequence up to itself, as far back as the layer's window.

        ``qkv_TX`` is [T, (N + 2 K) * D] and may be overwritten; ``out_TX`` is [T, N * D].
        """

    @abstractmethod
    def _tensors(self) -> Iterator[torch.Tensor]:
        """All tensors of the cache; the first dimension of each counts blocks."""

    def copy_blocks(self, sources: list[int], targets: list[int]) -> None:
        """Copy whole blocks in every layer."""
        device = next(self._tensors()).device
        source, target = upload([np.array(sources, dtype=np.int32), np.array(targets, dtype=np.int32)], device)
        for tensor in self._tensors():
            # Not every operation of torch takes float8.
            cache = tensor.view(torch.uint8) if tensor.itemsize == 1 else tensor
            cache.index_copy_(0, target.long(), cache.index_select(0, source))

    def release(self) -> None:
        """Free the memory of the cache."""
        for tensor in self._tensors():
            tensor.untyped_storage().resize_(0)

    def restore(self) -> None:
        """Take the memory of the cache again; its content is undefined."""
        for tensor in self._tensors():
            tensor.untyped_storage().resize_(tensor.numel() * tensor.element_size())
