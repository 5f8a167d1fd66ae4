"""Which attention to compute with."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module

from rlserve.engine.attention.base import AttentionBackend
from rlserve.engine.config import KvCacheDtype
from rlserve.engine.device.backend import Backend
from rlserve.errors import UserError

_CLASSES: Mapping[Backend, Mapping[KvCacheDtype, str]] = {
    "cpu": {"auto": "cpu_kernel.CpuKernelAttention", "int8": "cpu_kernel.Int8CpuKernelAttention"},
    "torch": {
        "auto": "torch_paged.TorchPagedAttention",
        "int8": "torch_paged.Int8TorchPagedAttention",
        "fp8": "torch_paged.Fp8TorchPagedAttention",
    },
    "triton": {
        "auto": "triton_paged.TritonPagedAttention",
        "int8": "triton_paged.Int8TritonPagedAttention",
        "fp8": "triton_paged.Fp8TritonPagedAttention",
    },
    "flash": {"auto": "flash.FlashAttention"},
}
"""By backend and type of the KV cache: module and class. Those of a GPU need Triton, so they are imported late."""


def attention_class(backend: Backend, kv_cache_dtype: KvCacheDtype = "auto") -> type[AttentionBackend]:
    """The class of a backend.

    Raises:
        UserError: the backend has no cache of that type.
    """
    classes = _CLASSES[backend]
    if kv_cache_dtype not in classes:
        able = [name for name, others in _CLASSES.items() if kv_cache_dtype in others]
        raise UserError(
            f"kv_cache_dtype={kv_cache_dtype} is not for attention_backend={backend}, only for {', '.join(able)}"
        )
    module, name = classes[kv_cache_dtype].split(".")
    found: type[AttentionBackend] = getattr(import_module(f"rlserve.engine.attention.{module}"), name)
    return found
