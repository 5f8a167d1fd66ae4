"""What the compiled attention is told of a step and of the cache of a layer: see ``attention.h``."""

from __future__ import annotations

import ctypes

import torch

_LANES = 16
_UNITS = {torch.bfloat16: 2}


class StepArguments(ctypes.Structure):
    """What all layers of a kind share in one step. Mirrored by ``Step`` in ``attention.h``."""

    _fields_ = (
        *((name, ctypes.c_int32) for name in ("num_tokens", "num_sequences", "num_heads", "num_kv_heads")),
        *((name, ctypes.c_int32) for name in ("head_dim", "block_size", "table_width", "window")),
        *((name, ctypes.c_float) for name in ("eps", "scale", "softcap", "norm_offset")),
        *((name, ctypes.c_void_p) for name in ("positions", "cache_slots", "query_starts", "table_rows")),
        *((name, ctypes.c_void_p) for name in ("block_tables", "rotation")),
    )


class LayerCache(ctypes.Structure):
    """Where the cache of one layer is. Mirrored by ``LayerCache`` in ``attention.h``."""

    _fields_ = tuple((name, ctypes.c_void_p) for name in ("keys", "values", "scales"))


def cache_elements(num_kv_heads: int, head_dim: int, block_size: int, dtype: torch.dtype) -> tuple[int, int]:
    """Elements of a block of the cache of one layer: of its keys, and of its values."""
    keys = head_dim * round_up(block_size)
    values = round_up(block_size, _UNITS.get(dtype, 1)) * round_up(head_dim)
    return num_kv_heads * keys, num_kv_heads * values


def round_up(count: int, multiple: int = _LANES) -> int:
    """The next multiple, by default of the lanes of a vector."""
    return -(-count // multiple) * multiple
