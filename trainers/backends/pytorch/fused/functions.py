"""Norms, rotary embeddings and gated activations as single operations of autograd. They save what they are given, and
nothing that they compute on the way.

Legend: S samples of a pass, L longest input, H hidden size, h heads, k key-value heads, D head size, I intermediate
size, P programs.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from rlserve.trainers.backends.pytorch.fused.programs import (
    gated_backward,
    gated_forward,
    norm_backward,
    norm_forward,
    rotate_backward,
    rotate_forward,
)

_TILE_ELEMENTS = 4096
"""Of the rows that a program has in hand at once; a longer row makes one by itself."""
_MOST_PROGRAMS = 512
"""That share the rows of a backward pass. The same on every GPU, since the order of sums depends on it."""
_ACTIVATION_BLOCK = 1024


class Rotation(NamedTuple):
    """What becomes of queries and keys: the RMS norms of their heads, if they have any, and their rotary embedding."""

    cos: Tensor
    """[S or 1, L, D], whose halves are the same; so with ``sin``."""
    sin: Tensor
    query_norm: Tensor | None
    """[D]"""
    key_norm: Tensor | None
    """[D]"""
    eps: float
    """Of both norms."""


def rms_norm(inputs: Tensor, weight_H: Tensor, eps: float, *, offset: float, dtype: torch.dtype) -> Tensor:
    """[..., H] the inputs over their root mean square, times ``weight + offset``; in ``dtype``."""
    (outputs,) = _RmsNorm.apply(inputs, None, weight_H, eps, offset, dtype)  # type: ignore[no-untyped-call]
    return outputs  # type: ignore[no-any-return]


def add_rms_norm(
    inputs: Tensor, update: Tensor, weight_H: Tensor, eps: float, *, offset: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Each [..., H]: ``rms_norm`` of the sum of float32 inputs and an update, and the sum."""
    return _RmsNorm.apply(inputs, update, weight_H, eps, offset, dtype)  # type: ignore[no-any-return, no-untyped-call]


def split_heads(packed: Tensor, num_heads: int, num_kv_heads: int, rotation: Rotation) -> tuple[Tensor, Tensor, Tensor]:
    """Queries [S, L, h, D] and keys [S, L, k, D], normed and rotated, and values [S, L, k, D], from [S, L, (h + 2k) D],
    where they lie side by side."""
    cos, sin, query_norm, key_norm, eps = rotation
    return _SplitHeads.apply(packed, query_norm, key_norm, cos, sin, eps, (num_heads, num_kv_heads))  # type: ignore[no-any-return, no-untyped-call]


def gated_activation(packed: Tensor, *, is_gelu: bool) -> Tensor:
    """[..., I] ``silu(gate) * up``, or GELU by the hyperbolic tangent in place of SiLU, from [..., 2 I], where they lie
    side by side."""
    return _GatedActivation.apply(packed, is_gelu)  # type: ignore[no-any-return, no-untyped-call]


def _num_blocks(num_elements: int, block: int) -> int:
    return -(-num_elements // block)


def _block(size: int) -> int:
    """The smallest power of 2 that has room."""
    return 1 << (size - 1).bit_length()


class _RmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        context: Any,
        inputs: Tensor,
        update: Tensor | None,
        weight_H: Tensor,
        eps: float,
        offset: float,
        dtype: torch.dtype,
    ) -> tuple[Tensor, ...]:
        inputs = inputs.contiguous()
        outputs, summed = torch.empty_like(inputs, dtype=dtype), None
        if update is not None:
            update, summed = update.contiguous(), torch.empty_like(inputs, dtype=torch.float32)
            context.update_dtype = update.dtype
        size = inputs.shape[-1]
        num_rows, block = inputs.numel() // size, _block(size)
        rows = max(1, _TILE_ELEMENTS // block)
        sizes = {"SIZE": size, "BLOCK": block, "ROWS": rows, "OFFSET": offset, "HAS_UPDATE": update is not None}
        num_tiles = _num_blocks(num_rows, rows)
        norm_forward[num_tiles,](inputs, update, weight_H, outputs, summed, num_rows, eps, **sizes)
        context.save_for_backward(inputs if summed is None else summed, weight_H)
        context.launch = num_rows, eps, sizes, min(num_tiles, _MOST_PROGRAMS)
        return (outputs,) if summed is None else (outputs, summed)

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        inputs, weight_H = context.saved_tensors
        num_rows, eps, sizes, num_programs = context.launch
        gradient, of_inputs, of_sum, of_update = gradients[0].contiguous(), torch.empty_like(inputs), None, None
        if sizes["HAS_UPDATE"]:
            of_sum, of_update = gradients[1].contiguous(), torch.empty_like(inputs, dtype=context.update_dtype)
        of_weight_PH = weight_H.new_empty(num_programs, sizes["SIZE"])
        norm_backward[num_programs,](
            inputs, weight_H, gradient, of_sum, of_inputs, of_update, of_weight_PH, num_rows, eps, **sizes
        )
        of_weight = of_weight_PH.sum(0) if context.needs_input_grad[2] else None
        return of_inputs, of_update, of_weight, None, None, None


class _SplitHeads(torch.autograd.Function):
    @staticmethod
    def forward(
        context: Any,
        packed: Tensor,
        query_norm_D: Tensor | None,
        key_norm_D: Tensor | None,
        cos: Tensor,
        sin: Tensor,
        eps: float,
        num_heads: tuple[int, int],
    ) -> tuple[Tensor, Tensor, Tensor]:
        packed, cos, sin = packed.contiguous(), cos.contiguous(), sin.contiguous()
        size, half_block = cos.shape[-1], _block(cos.shape[-1] // 2)
        queries, keys, values = (
            packed.new_empty(*packed.shape[:-1], number, size) for number in (num_heads[0], num_heads[1], num_heads[1])
        )
        sizes = {
            "NUM_HEADS": num_heads[0],
            "NUM_KV_HEADS": num_heads[1],
            "SIZE": size,
            "HALF_BLOCK": half_block,
            "ROWS": max(1, _TILE_ELEMENTS // (2 * half_block)),
            "HAS_NORM": query_norm_D is not None,
        }
        numbers = packed.numel() // size, cos.numel() // size, eps
        num_tiles = _num_blocks(numbers[0], sizes["ROWS"])
        rotate_forward[num_tiles,](packed, query_norm_D, key_norm_D, cos, sin, queries, keys, values, *numbers, **sizes)
        context.save_for_backward(None if query_norm_D is None else packed, query_norm_D, key_norm_D, cos, sin)
        context.launch = packed.shape, numbers, sizes, min(num_tiles, _MOST_PROGRAMS)
        return queries, keys, values

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        packed, query_norm_D, key_norm_D, cos, sin = context.saved_tensors
        shape, numbers, sizes, num_programs = context.launch
        contiguous = [gradient.contiguous() for gradient in gradients]
        of_packed = contiguous[0].new_empty(shape)
        of_norms_P2D = None if query_norm_D is None else query_norm_D.new_empty(num_programs, 2, len(query_norm_D))
        rotate_backward[num_programs,](
            packed, query_norm_D, key_norm_D, cos, sin, *contiguous, of_packed, of_norms_P2D, *numbers, **sizes
        )
        of_norms = (None, None) if of_norms_P2D is None else of_norms_P2D.sum(0).unbind()
        return of_packed, *of_norms, None, None, None, None


class _GatedActivation(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, packed: Tensor, is_gelu: bool) -> Tensor:
        packed = packed.contiguous()
        size = packed.shape[-1] // 2
        outputs = packed.new_empty(*packed.shape[:-1], size)
        num_elements, sizes = outputs.numel(), {"SIZE": size, "BLOCK": _ACTIVATION_BLOCK, "IS_GELU": is_gelu}
        gated_forward[_num_blocks(num_elements, _ACTIVATION_BLOCK),](packed, outputs, num_elements, **sizes)
        context.save_for_backward(packed)
        context.sizes = sizes
        return outputs

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (packed,) = context.saved_tensors
        gradient, of_packed = gradients[0].contiguous(), torch.empty_like(packed)
        num_elements = gradient.numel()
        grid = (_num_blocks(num_elements, _ACTIVATION_BLOCK),)
        gated_backward[grid](packed, gradient, of_packed, num_elements, **context.sizes)
        return of_packed, None
