"""Copies of tensors, past the cache, that are summed up on their way: see ``fingerprint.cpp``."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch

from rlserve.native.library import load_library

_FUNCTIONS = {
    (torch.float32, torch.float32): "copy_float32",
    (torch.bfloat16, torch.bfloat16): "copy_bfloat16",
    (torch.float32, torch.bfloat16): "round_bfloat16",
}
"""By the type that is read and the one that is written."""
_LINE_BYTES = 64


def can_copy(source: torch.Tensor, target: torch.Tensor) -> bool:
    """Whether :func:`copy_all` takes them."""
    return (
        (source.dtype, target.dtype) in _FUNCTIONS
        and source.device.type == target.device.type == "cpu"
        and source.is_contiguous()
        and target.is_contiguous()
        and target.data_ptr() % _LINE_BYTES == 0
    )


def copy_all(copies: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> list[int]:
    """Copy each first tensor into the second, which has as many elements, rounding to its type as PyTorch does; all are
    of one pair of types.

    Returns:
        Of each, as it was written, the sum of ``weighted_sum.h``.

    Raises:
        NativeBuildError: there are no compiled kernels.
    """
    library = load_library()
    if not copies:
        return []
    (types,) = {(source.dtype, target.dtype) for source, target in copies}
    array = (_Copy * len(copies))(
        *(_Copy(source.data_ptr(), target.data_ptr(), target.numel(), 0) for source, target in copies)
    )
    getattr(library, _FUNCTIONS[types])(ctypes.addressof(array), len(array), torch.get_num_threads())
    return [copy.sum for copy in array]


class _Copy(ctypes.Structure):
    """Mirrored by ``Copy`` in ``fingerprint.cpp``."""

    _fields_ = (
        ("source", ctypes.c_void_p),
        ("target", ctypes.c_void_p),
        ("size", ctypes.c_int64),
        ("sum", ctypes.c_uint64),
    )
