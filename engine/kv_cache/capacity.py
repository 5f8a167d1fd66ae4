"""How many tokens a KV cache will hold, before there is an engine. Imports no torch."""

from __future__ import annotations

from rlserve.engine.config import EngineConfig
from rlserve.engine.models.base import ModelSpec

DEFAULT_BYTES = 256 * 2**20
"""Where nothing is told and nothing is measured."""
_SCALE_BYTES = 4


def token_bytes(config: EngineConfig, spec: ModelSpec) -> int:
    """Bytes that the keys and values of one token take, all layers together, in each of the engine's processes."""
    element_bytes = 4 if config.dtype == "float32" else 2
    head_bytes = spec.head_dim * element_bytes
    if config.kv_cache_dtype != "auto":
        head_bytes = spec.head_dim + _SCALE_BYTES
    num_heads = max(spec.num_kv_heads // config.tensor_parallel_size, 1)
    return 2 * spec.num_layers * num_heads * head_bytes


def num_cache_tokens(config: EngineConfig, spec: ModelSpec, *, on_cpu: bool) -> int | None:
    """Tokens that the cache holds; None where the memory that is free on a GPU will decide."""
    if config.num_blocks is not None:
        return config.num_blocks * config.block_size
    if config.kv_cache_bytes is None and not on_cpu and config.tensor_parallel_size == 1:
        return None
    num_bytes = DEFAULT_BYTES if config.kv_cache_bytes is None else config.kv_cache_bytes
    return num_bytes // (token_bytes(config, spec) * config.block_size) * config.block_size
