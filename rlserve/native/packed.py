"""What a trainer's layers compute over packed samples on a CPU, beside products: see ``packed.h`` and
``packed_attention.h``. Activations are float32 or bfloat16, rows of the residual and weights float32; sums are float32.

Legend: T rows, H hidden size, I intermediate size, N query heads, K key-value heads, D head size, R trees, B blocks.
"""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor

from rlserve.native.library import load_library

_NORM_ROWS = 32
"""Mirrored by ``PACKED_NORM_ROWS`` in ``packed.h``."""
_PARALLEL_FROM = 2**15
"""Elements; below, waking threads costs more than they save."""


class PackedStep(ctypes.Structure):
    """Mirrored by ``PackedStep`` in ``packed_attention.h``, which says what the members are."""

    _fields_ = (
        *((name, ctypes.c_int32) for name in ("num_trees", "longest")),
        *((name, ctypes.c_int32) for name in ("num_heads", "num_kv_heads", "head_dim", "window")),
        *((name, ctypes.c_float) for name in ("eps", "scale", "softcap", "norm_offset")),
        *((name, ctypes.c_void_p) for name in ("positions", "segments", "parents", "trees", "wanted")),
        *((name, ctypes.c_void_p) for name in ("rotation", "query_norm", "key_norm")),
    )


def norm(rows_TH: Tensor, weight_H: Tensor, eps: float, offset: float, dtype: torch.dtype) -> Tensor:
    """[T, H] in ``dtype``: float32 rows over their root mean square, times ``weight + offset``."""
    out_TH = torch.empty_like(rows_TH, dtype=dtype)
    _call("packed_norm", dtype, rows_TH, weight_H, out_TH, *rows_TH.shape, eps, offset, _threads(rows_TH))
    return out_TH


def norm_backward(
    rows_TH: Tensor, weight_H: Tensor, gradient_TH: Tensor, of_rows_TH: Tensor | None, eps: float, offset: float
) -> tuple[Tensor, Tensor, Tensor]:
    """From the gradient of what ``norm`` gave: that of the rows [T, H] float32, with ``of_rows`` added; that of the
    weight [H]; and once more what ``norm`` gave."""
    dtype, num_rows, size = gradient_TH.dtype, *rows_TH.shape
    total_TH, out_TH = torch.empty_like(rows_TH), torch.empty_like(gradient_TH)
    of_weight_BH = rows_TH.new_empty(-(-num_rows // _NORM_ROWS), size)
    tensors = (rows_TH, weight_H, gradient_TH, of_rows_TH, total_TH, of_weight_BH, out_TH)
    _call("packed_norm_backward", dtype, *tensors, num_rows, size, eps, offset, _threads(rows_TH))
    return total_TH, of_weight_BH.sum(0), out_TH


def gate(gate_up: Tensor, *, is_gelu: bool) -> Tensor:
    """[T, I] the activation of the gate, SiLU or GELU by the hyperbolic tangent, times ``up``, from [T, 2 I]."""
    out_TI = gate_up.new_empty(len(gate_up), gate_up.shape[1] // 2)
    name = "gelu_tanh_mul" if is_gelu else "silu_mul"
    _call(name, gate_up.dtype, gate_up, out_TI, *out_TI.shape, torch.get_num_threads())
    return out_TI


def gate_backward(gate_up: Tensor, gradient_TI: Tensor, *, is_gelu: bool) -> tuple[Tensor, Tensor]:
    """The gradient of gate and up [T, 2 I] from that of what ``gate`` gave, and once more what that was."""
    of_gate_up, out_TI = torch.empty_like(gate_up), torch.empty_like(gradient_TI)
    tensors = (gate_up, gradient_TI, of_gate_up, out_TI)
    _call("packed_gate_backward", gate_up.dtype, *tensors, *out_TI.shape, int(is_gelu), _threads(gate_up))
    return of_gate_up, out_TI


def attend(step: PackedStep, qkv: Tensor) -> tuple[Tensor, Tensor]:
    """Attention [T, N D] from queries, keys and values [T, (N + 2 K) D] as their product gives them, and the logarithms
    of the sums of its exponentials [T, N]. Rows that are not wanted may hold anything."""
    out = qkv.new_empty(len(qkv), step.num_heads * step.head_dim)
    log_sums_TN = torch.empty(len(qkv), step.num_heads)
    _call("packed_attend", qkv.dtype, ctypes.addressof(step), qkv, out, log_sums_TN, torch.get_num_threads())
    return out, log_sums_TN


def attend_backward(
    step: PackedStep, qkv: Tensor, out: Tensor, log_sums_TN: Tensor, gradient: Tensor
) -> tuple[Tensor, Tensor | None]:
    """The gradients of ``qkv`` and, if heads are normed, of the norms of queries and keys [2, D]; from what ``attend``
    gave and its gradient. Of rows that are not wanted nothing is read."""
    of_qkv, of_norms = torch.empty_like(qkv), None
    if step.query_norm:
        of_norms = torch.empty(step.num_trees * step.num_kv_heads, 2, step.head_dim)
    tensors = (qkv, out, log_sums_TN, gradient, of_qkv, of_norms)
    _call("packed_attend_backward", qkv.dtype, ctypes.addressof(step), *tensors, torch.get_num_threads())
    return of_qkv, None if of_norms is None else of_norms.sum(0)


def add_rows(out: Tensor, places_T: Tensor, rows_TH: Tensor) -> None:
    """Add each row to the row of ``out`` [., H] that ``places`` (int64) says, in their order whatever the threads."""
    _call("packed_add_rows", torch.float32, rows_TH, places_T, out, *rows_TH.shape, _threads(rows_TH))


def _call(name: str, dtype: torch.dtype, *arguments: Any) -> None:
    assert all(argument.is_contiguous() for argument in arguments if isinstance(argument, Tensor))
    function = getattr(load_library(), f"{name}_{'float32' if dtype is torch.float32 else 'bfloat16'}")
    function(*(argument.data_ptr() if isinstance(argument, Tensor) else argument for argument in arguments))


def _threads(tensor: Tensor) -> int:
    return torch.get_num_threads() if tensor.numel() >= _PARALLEL_FROM else 1
