"""Which attention backend to compute with."""

from __future__ import annotations

from rlserve.engine.attention.base import AttentionBackend
from rlserve.engine.attention.torch_paged import TorchPagedAttention


def attention_class(backend: str) -> type[AttentionBackend]:
    """The backend class of a resolved name."""
    return TorchPagedAttention
