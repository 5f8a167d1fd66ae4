"""Which attention to compute with."""

from __future__ import annotations

from typing import Literal

from rlserve.engine.attention.base import AttentionBackend
from rlserve.engine.attention.cpu_kernel import CpuKernelAttention
from rlserve.engine.attention.torch_paged import TorchPagedAttention


def attention_class(backend: Literal["torch", "cpu"]) -> type[AttentionBackend]:
    """The class of a backend."""
    return CpuKernelAttention if backend == "cpu" else TorchPagedAttention
