"""What a packed decoder consists of as operations of autograd: an embedding, layers, the last norm, the choice of rows.
Each keeps what its products were given, and computes what lies between a second time.

Legend: T rows, U rows that are wanted, H hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rlserve.native import packed as kernels
from rlserve.trainers.backends.pytorch.fused.linear import RoundedProduct

Gradients = list[Tensor | None]


@dataclass(frozen=True, kw_only=True)
class Norm:
    """Of root mean squares."""

    weight: Tensor
    eps: float
    offset: float
    """Added to the weight."""

    def forward(self, rows: Tensor, dtype: torch.dtype) -> Tensor:
        """[T, H] in ``dtype``, of float32 rows."""
        return kernels.norm(rows, self.weight, self.eps, self.offset, dtype)

    def backward(self, rows: Tensor, gradient: Tensor, added: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """The gradients of the rows, with ``added``, and of the weight; and what ``forward`` gave."""
        return kernels.norm_backward(rows, self.weight, gradient, added, self.eps, self.offset)


@dataclass(frozen=True, kw_only=True, eq=False)
class LayerParts:
    """A layer's weights, and what it does with them."""

    input_norm: Norm
    qkv: RoundedProduct
    head_norms: tuple[Tensor, ...]
    """Weights of the norms of queries and keys, or none."""
    output: RoundedProduct
    attention_update_norm: Norm | None
    """Of what is added to the residual."""
    mlp_norm: Norm
    gate_up: RoundedProduct
    is_gelu: bool
    down: RoundedProduct
    mlp_update_norm: Norm | None
    dtype: torch.dtype

    def parameters(self) -> list[Tensor]:
        """In the order of the gradients."""
        norms = [self.attention_update_norm, self.mlp_norm, self.mlp_update_norm]
        return [
            *(norm.weight for norm in (self.input_norm, *norms) if norm is not None),
            *self.head_norms,
            *(weight for product in self.products() for weight in product.parameters()),
        ]

    def products(self) -> tuple[RoundedProduct, ...]:
        """In the order that they are computed in."""
        return self.qkv, self.output, self.gate_up, self.down


def layer(hidden_TH: Tensor, parts: LayerParts, step: kernels.PackedStep, wanted_U: Tensor | None) -> Tensor:
    """Attention and feed-forward layer; all rows, or those that are wanted: [U, H]."""
    return _Layer.apply(hidden_TH, parts, step, wanted_U, *parts.parameters())  # type: ignore[no-any-return, no-untyped-call]


def final_norm(rows_UH: Tensor, norm: Norm) -> Tensor:
    """[U, H] float32"""
    return _Norm.apply(rows_UH, norm, norm.weight)  # type: ignore[no-any-return, no-untyped-call]


def rows_at(table: Tensor, places: Tensor, *, fixed: int | None = None) -> Tensor:
    """[places, H], of which one row may be asked for many times. The gradient of a weight that has one already is
    added to that, at these rows alone; a ``fixed`` row has none."""
    return _RowsAt.apply(table, places, fixed)  # type: ignore[no-any-return, no-untyped-call]


class _RowsAt(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, table: Tensor, places: Tensor, fixed: int | None) -> Tensor:
        context.save_for_backward(places)
        context.fixed = fixed
        context.table = table if table.is_leaf else None
        context.shape = table.shape
        return table.index_select(0, places)

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor | None, None, None]:
        (places,) = context.saved_tensors
        gradient = gradients[0].contiguous()
        if context.fixed is not None:
            gradient = gradient.masked_fill((places == context.fixed)[:, None], 0.0)
        table = context.table
        if table is not None and table.grad is not None:
            kernels.add_rows(table.grad, places, gradient)
            return None, None, None
        of_table = gradient.new_zeros(context.shape)
        kernels.add_rows(of_table, places, gradient)
        return of_table, None, None


class _Norm(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, rows: Tensor, norm: Norm, _weight: Tensor) -> Tensor:
        context.save_for_backward(rows)
        context.norm = norm
        return norm.forward(rows, torch.float32)

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (rows,) = context.saved_tensors
        of_rows, of_weight, _ = context.norm.backward(rows, gradients[0].contiguous())
        return of_rows, None, of_weight


class _Layer(torch.autograd.Function):
    @staticmethod
    def forward(
        context: Any,
        hidden: Tensor,
        parts: LayerParts,
        step: kernels.PackedStep,
        wanted: Tensor | None,
        *_parameters: Tensor,
    ) -> Tensor:
        qkv = parts.qkv.multiply(parts.input_norm.forward(hidden, parts.dtype))
        attended, log_sums = kernels.attend(step, qkv)
        base, used = _chosen(hidden, wanted), _chosen(attended, wanted)
        middle, attention_update = _add_product(base, parts.output, used, parts.attention_update_norm)
        gate_up = parts.gate_up.multiply(parts.mlp_norm.forward(middle, parts.dtype))
        activated = kernels.gate(gate_up, is_gelu=parts.is_gelu)
        result, mlp_update = _add_product(middle, parts.down, activated, parts.mlp_update_norm)
        context.save_for_backward(
            hidden, qkv, attended, log_sums, attention_update, middle, gate_up, mlp_update, wanted
        )
        context.parts, context.step = parts, step
        return result

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        hidden, qkv, attended, log_sums, attention_update, middle, gate_up, mlp_update, wanted = context.saved_tensors
        parts, dtype = context.parts, context.parts.dtype
        of_result = gradients[0].contiguous()
        of_update, *of_mlp_update_norm = _back_through(parts.mlp_update_norm, mlp_update, of_result)
        of_update = of_update.to(dtype)
        of_gate_up, activated = kernels.gate_backward(gate_up, parts.down.of_inputs(of_update), is_gelu=parts.is_gelu)
        of_down = parts.down.of_parameters(activated, of_update)
        of_middle, of_mlp_norm, normed = parts.mlp_norm.backward(middle, parts.gate_up.of_inputs(of_gate_up), of_result)
        of_gate_up_weights = parts.gate_up.of_parameters(normed, of_gate_up)
        del activated, normed, of_gate_up
        of_update, *of_attention_update_norm = _back_through(parts.attention_update_norm, attention_update, of_middle)
        of_update = of_update.to(dtype)
        of_output = parts.output.of_parameters(_chosen(attended, wanted), of_update)
        of_attended = parts.output.of_inputs(of_update)
        if wanted is not None:
            of_attended = torch.empty_like(attended).index_copy_(0, wanted, of_attended)
            of_middle = torch.zeros_like(hidden).index_copy_(0, wanted, of_middle)
        of_qkv, of_head_norms = kernels.attend_backward(context.step, qkv, attended, log_sums, of_attended)
        of_hidden, of_input_norm, normed = parts.input_norm.backward(hidden, parts.qkv.of_inputs(of_qkv), of_middle)
        of_qkv_weights = parts.qkv.of_parameters(normed, of_qkv)
        norms = (of_input_norm, *of_attention_update_norm, of_mlp_norm, *of_mlp_update_norm)
        heads = () if of_head_norms is None else of_head_norms.unbind()
        products = (*of_qkv_weights, *of_output, *of_gate_up_weights, *of_down)
        return of_hidden, None, None, None, *norms, *heads, *products


def _chosen(rows: Tensor, wanted: Tensor | None) -> Tensor:
    """Those that are wanted."""
    return rows if wanted is None else rows.index_select(0, wanted)


def _add_product(
    base: Tensor, product: RoundedProduct, inputs: Tensor, norm: Norm | None
) -> tuple[Tensor, Tensor | None]:
    """The base with a product added, normed first where there is a norm; and what that is of."""
    if norm is not None:
        update = product.multiply(inputs).float()
        return base + norm.forward(update, torch.float32), update
    return product.added_to(base, inputs), None


def _back_through(norm: Norm | None, update: Tensor | None, gradient: Tensor) -> Sequence[Tensor]:
    """The gradient of what is added to the residual before its norm, and that of the norm's weight, if there is one."""
    if norm is None or update is None:
        return (gradient,)
    of_update, of_weight, _ = norm.backward(update, gradient)
    return of_update, of_weight
