"""Which attention to compute with."""

from __future__ import annotations

from rlserve.engine.attention.base import AttentionBackend
from rlserve.engine.attention.cpu_kernel import CpuKernelAttention, Int8CpuKernelAttention
from rlserve.engine.attention.torch_paged import Int8TorchPagedAttention, TorchPagedAttention
from rlserve.engine.backend import Backend
from rlserve.errors import UserError

_INT8_CLASSES: dict[Backend, type[AttentionBackend]] = {
    "cpu": Int8CpuKernelAttention,
    "torch": Int8TorchPagedAttention,
}


def attention_class(backend: Backend, *, is_int8: bool = False) -> type[AttentionBackend]:
    """The class of a backend, with a KV cache of int8 if asked. Those of a GPU are imported only here: they need
    Triton.

    Raises:
        UserError: the backend has no cache of int8.
    """
    if is_int8:
        if backend not in _INT8_CLASSES:
            raise UserError(f"kv_cache_dtype=int8 is not for attention_backend={backend}, only for cpu and torch")
        return _INT8_CLASSES[backend]
    if backend == "triton":
        from rlserve.engine.attention.triton_paged import TritonPagedAttention

        return TritonPagedAttention
    if backend == "flash":
        from rlserve.engine.attention.flash import FlashAttention

        return FlashAttention
    return CpuKernelAttention if backend == "cpu" else TorchPagedAttention
