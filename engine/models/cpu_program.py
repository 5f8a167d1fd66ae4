"""The decoder on a CPU: a step is one call of compiled code, from the token ids to the logits.

On a small model the calls of single operations, and waking the threads for each, cost more than what they compute.
So the operations of a step are written down once, with the addresses of their tensors, and a team of threads runs
the whole list (``rlserve/native/program.cpp``). What a row gets does not depend, to the bit, on the rows beside it.

Legend: T tokens, R rows whose next token is wanted, V vocabulary; O outputs and K inputs of a product.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from rlserve.engine.attention.cpu_kernel import CpuKernelAttention, Int8CpuKernelAttention
from rlserve.engine.models.base import ModelSpec
from rlserve.engine.models.layer_parameters import LayerParameters
from rlserve.engine.models.parameters import Parameters
from rlserve.native.program import Kind, Operation, PackedWeight, Program, cap, has_fast_products


def can_run(spec: ModelSpec, dtype: torch.dtype, *, deterministic: bool) -> bool:
    """Whether the model is better run as a program than operation by operation, with its products made by oneDNN:
    always in deterministic mode, else where this machine's products are fast enough. Experts are not."""
    inputs = (spec.hidden_size, spec.query_size, spec.intermediate_size)
    is_even = dtype is torch.float32 or all(size % 2 == 0 for size in inputs)
    return spec.experts is None and is_even and (deterministic or has_fast_products(dtype))


class _Layer:
    def __init__(self, weights: LayerParameters) -> None:
        self.weights = weights
        self.qkv = PackedWeight(weights.qkv, weights.qkv_bias)
        self.output = PackedWeight(weights.output, weights.output_bias)
        self.gate_up = PackedWeight(weights.mlp.gate_up, weights.mlp.gate_up_bias)
        self.down = PackedWeight(weights.mlp.down, weights.mlp.down_bias)

    def packed(self) -> Iterator[PackedWeight]:
        yield from (self.qkv, self.output, self.gate_up, self.down)


class CpuProgram:
    """Runs the model of ``parameters``; a plain decoder without experts. Holds the work space of the largest step."""

    def __init__(
        self,
        spec: ModelSpec,
        parameters: Parameters,
        attention: CpuKernelAttention,
        *,
        max_num_tokens: int,
        max_num_rows: int,
    ) -> None:
        assert spec.experts is None
        self._spec = spec
        self._parameters = parameters
        self._attention = attention
        self._layers = [_Layer(weights) for weights in parameters.layers]
        self._head = PackedWeight(parameters.head, None)
        self._dtype = parameters.embedding.dtype

        def work_space(width: int) -> torch.Tensor:
            return torch.empty(max_num_tokens, width, dtype=self._dtype)

        self._residual, self._update, self._normed = (work_space(spec.hidden_size) for _ in range(3))
        self._qkv, self._attended = work_space(spec.query_size + 2 * spec.kv_size), work_space(spec.query_size)
        self._gate_up, self._activated = work_space(2 * spec.intermediate_size), work_space(spec.intermediate_size)
        self._last = torch.empty(max_num_rows, spec.hidden_size, dtype=self._dtype)
        self._logits_RV = torch.empty(max_num_rows, spec.vocab_size)
        self._program: Program | None = None

    def forward(self, token_ids_T: torch.Tensor, last_rows_R: torch.Tensor) -> torch.Tensor:
        """Compute the step that the attention backend has begun, and return the logits [R, V], float32, of the
        tokens at ``last_rows_R``; the tensor is overwritten by the next step."""
        assert self._program is not None, "the weights were never filled"
        self._program.run(token_ids_T, last_rows_R)
        return self._logits_RV[: len(last_rows_R)]

    def logits_of(self, first: int, end: int) -> torch.Tensor:
        """Logits [end - first, V] of the tokens [first, end) of the step computed last, in memory of their own."""
        logits = self._head.multiply(self._normed[first:end], torch.empty(end - first, self._spec.vocab_size))
        return cap(logits, self._spec.logits_softcap) if self._spec.logits_softcap else logits

    def weights_changed(self) -> None:
        """Must be called after the parameters were written to, before the next step."""
        for packed in self._packed():
            packed.fill()
        self._program = Program(
            list(self._operations()),
            self._dtype,
            is_int8_cache=isinstance(self._attention, Int8CpuKernelAttention),
        )

    def weights_released(self) -> None:
        """Forget what was derived from parameters whose memory is freed."""
        self._program = None
        for packed in self._packed():
            packed.release()

    def _packed(self) -> Iterator[PackedWeight]:
        yield self._head
        for layer in self._layers:
            yield from layer.packed()

    def _operations(self) -> Iterator[Operation]:
        spec, embedding = self._spec, self._parameters.embedding
        yield Operation(
            kind=Kind.EMBED,
            outputs=spec.hidden_size,
            factor=torch.tensor(spec.embedding_scale, dtype=self._dtype).item(),
            weight=embedding.data_ptr(),
            output=self._residual.data_ptr(),
        )
        for index, layer in enumerate(self._layers):
            yield self._norm(layer.weights.input_norm, adds_update=index > 0)
            yield from self._attention_part(index, layer)
            yield self._norm(layer.weights.mlp_norm)
            yield from self._mlp_part(layer)
        yield self._norm(self._parameters.final_norm)
        yield Operation(
            kind=Kind.TAKE_ROWS,
            outputs=spec.hidden_size,
            input=self._normed.data_ptr(),
            output=self._last.data_ptr(),
        )
        yield _linear(self._head, self._last, self._logits_RV, kind=Kind.HEAD)
        if spec.logits_softcap:
            yield Operation(
                kind=Kind.CAP,
                outputs=spec.vocab_size,
                factor=spec.logits_softcap,
                output=self._logits_RV.data_ptr(),
            )

    def _attention_part(self, index: int, layer: _Layer) -> Iterator[Operation]:
        weights = layer.weights
        step, cache = self._attention.pointers(index)
        yield _linear(layer.qkv, self._normed, self._qkv)
        yield Operation(
            kind=Kind.ATTEND,
            input=self._qkv.data_ptr(),
            weight=None if weights.query_norm is None else weights.query_norm.data_ptr(),
            other=None if weights.key_norm is None else weights.key_norm.data_ptr(),
            output=self._attended.data_ptr(),
            step=step,
            cache=cache,
        )
        yield _linear(layer.output, self._attended, self._update)
        yield from self._update_norm(weights.attention_update_norm)

    def _mlp_part(self, layer: _Layer) -> Iterator[Operation]:
        yield _linear(layer.gate_up, self._normed, self._gate_up)
        yield Operation(
            kind=Kind.GELU_TANH_MUL if self._spec.activation == "gelu_tanh" else Kind.SILU_MUL,
            outputs=self._spec.intermediate_size,
            input=self._gate_up.data_ptr(),
            output=self._activated.data_ptr(),
        )
        yield _linear(layer.down, self._activated, self._update)
        yield from self._update_norm(layer.weights.mlp_update_norm)

    def _norm(self, weight_H: torch.Tensor, *, adds_update: bool = True) -> Operation:
        """From the residual, with the update added to it first, to the normed rows."""
        return Operation(
            kind=Kind.NORM,
            outputs=self._spec.hidden_size,
            factor=self._spec.rms_norm_eps,
            offset=self._spec.norm_offset,
            residual=self._residual.data_ptr(),
            input=self._update.data_ptr() if adds_update else None,
            weight=weight_H.data_ptr(),
            output=self._normed.data_ptr(),
        )

    def _update_norm(self, weight_H: torch.Tensor | None) -> Iterator[Operation]:
        """The norm of what is added to the residual, in place, where the model has one."""
        if weight_H is not None:
            yield Operation(
                kind=Kind.NORM,
                outputs=self._spec.hidden_size,
                factor=self._spec.rms_norm_eps,
                offset=self._spec.norm_offset,
                residual=self._update.data_ptr(),
                weight=weight_H.data_ptr(),
                output=self._update.data_ptr(),
            )


def _linear(weight_OK: PackedWeight, in_TK: torch.Tensor, out_TO: torch.Tensor, kind: Kind = Kind.LINEAR) -> Operation:
    return Operation(
        kind=kind,
        inputs=in_TK.shape[1],
        outputs=out_TO.shape[1],
        input=in_TK.data_ptr(),
        weight=weight_OK.packed.data_ptr(),
        other=None if weight_OK.bias is None else weight_OK.bias.data_ptr(),
        output=out_TO.data_ptr(),
    )
