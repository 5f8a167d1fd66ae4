"""A plain decoder on a CPU: a step is one call of compiled code, from the token ids to the logits.

On a small model the calls of single operations, and waking the threads for each, cost more than what they compute.
So the operations of a step are written down once, with the addresses of their tensors, and a team of threads runs
the whole list (``program.cpp``). What a row gets does not depend, to the bit, on the rows beside it, nor on the number
of threads.

Legend: T tokens, R rows whose next token is wanted, V vocabulary; H hidden size; O outputs and K inputs of a product.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch

from rlserve.native.low_rank import StepLowRanks
from rlserve.native.program import Kind, Operation, Program, Projection, cap

LinearName = Literal["qkv", "output", "gate_up", "down"]
"""The products of a layer."""
LINEAR_NAMES: tuple[LinearName, ...] = ("qkv", "output", "gate_up", "down")
"""In their order: the place of a product for adapters is its layer times their number, and its index."""


class DecoderShape(Protocol):
    """Sizes and switches of a decoder without experts."""

    @property
    def vocab_size(self) -> int: ...
    @property
    def hidden_size(self) -> int: ...
    @property
    def intermediate_size(self) -> int: ...
    @property
    def query_size(self) -> int: ...
    @property
    def kv_size(self) -> int: ...
    @property
    def rms_norm_eps(self) -> float: ...
    @property
    def norm_offset(self) -> float:
        """Added to the weights of all norms."""

    @property
    def activation(self) -> str:
        """``silu`` or ``gelu_tanh``."""

    @property
    def embedding_scale(self) -> float:
        """Factor of the embeddings, rounded to the type of the weights."""

    @property
    def logits_softcap(self) -> float:
        """Logits become ``cap * tanh(logit / cap)``; 0 leaves them."""


@dataclass(frozen=True, kw_only=True)
class DecoderLayer:
    """The weights of one layer, and where its attention finds the step and its cache."""

    input_norm: torch.Tensor
    qkv: Projection
    query_norm: torch.Tensor | None
    key_norm: torch.Tensor | None
    output: Projection
    attention_update_norm: torch.Tensor | None
    """Of what attention adds to the residual, where the model has one."""
    mlp_norm: torch.Tensor
    gate_up: Projection
    down: Projection
    mlp_update_norm: torch.Tensor | None
    step: int
    """Address of the ``StepArguments``."""
    cache: int
    """Address of the ``LayerCache``."""

    def projections(self) -> Iterator[Projection]:
        """All products."""
        yield from (self.qkv, self.output, self.gate_up, self.down)


class DecoderProgram:
    """Runs a decoder on its weights as they were at the last ``weights_changed``; holds the work space of the largest
    step. Whoever owns the attention describes the step in the ``StepArguments`` before each ``forward``."""

    def __init__(
        self,
        shape: DecoderShape,
        *,
        embedding: torch.Tensor,
        layers: Sequence[DecoderLayer],
        final_norm: torch.Tensor,
        head: Projection,
        max_num_tokens: int,
        max_num_rows: int,
        is_int8_cache: bool = False,
    ) -> None:
        """``embedding``: [V, H] in panels."""
        self._shape = shape
        self._embedding = embedding
        self._layers = layers
        self._final_norm = final_norm
        self._head = head
        self._is_int8_cache = is_int8_cache
        self._dtype = embedding.dtype

        def work_space(width: int) -> torch.Tensor:
            return torch.empty(max_num_tokens, width, dtype=self._dtype)

        self._residual, self._update, self._normed = (work_space(shape.hidden_size) for _ in range(3))
        self._qkv, self._attended = work_space(shape.query_size + 2 * shape.kv_size), work_space(shape.query_size)
        self._gate_up, self._activated = work_space(2 * shape.intermediate_size), work_space(shape.intermediate_size)
        self._last = torch.empty(max_num_rows, shape.hidden_size, dtype=self._dtype)
        self._logits_RV = torch.empty(max_num_rows, shape.vocab_size)
        self._program: Program | None = None

    def forward(
        self, token_ids_T: torch.Tensor, last_rows_R: torch.Tensor, low_ranks: StepLowRanks | None = None
    ) -> torch.Tensor:
        """Compute a step and return the logits [R, V], float32, of the tokens at ``last_rows_R``; the tensor is
        overwritten by the next step. Both are int64. ``low_ranks`` are added to products within layers."""
        assert self._program is not None, "the weights were never filled"
        self._program.run(token_ids_T, last_rows_R, low_ranks)
        return self._logits_RV[: len(last_rows_R)]

    def logits_of(self, first: int, end: int) -> torch.Tensor:
        """Logits [end - first, V] of the tokens [first, end) of the step computed last, in memory of their own."""
        logits = self._head.multiply(self._normed[first:end], torch.empty(end - first, self._shape.vocab_size))
        return cap(logits, self._shape.logits_softcap) if self._shape.logits_softcap else logits

    def weights_changed(self) -> None:
        """Must be called after the weights were written to, before the next step."""
        for projection in self._projections():
            projection.weight_changed()
        self._program = Program(list(self._operations()), self._dtype, is_int8_cache=self._is_int8_cache)

    def weights_released(self) -> None:
        """Forget what was derived from weights whose memory is freed."""
        self._program = None
        for projection in self._projections():
            projection.weight_released()

    def _projections(self) -> Iterator[Projection]:
        yield self._head
        for layer in self._layers:
            yield from layer.projections()

    def _operations(self) -> Iterator[Operation]:
        shape, embedding = self._shape, self._embedding
        yield Operation(
            kind=Kind.EMBED,
            outputs=shape.hidden_size,
            factor=torch.tensor(shape.embedding_scale, dtype=self._dtype).item(),
            weight=embedding.data_ptr(),
            output=self._residual.data_ptr(),
        )
        for index, layer in enumerate(self._layers):
            yield self._norm(layer.input_norm, adds_update=index > 0)
            yield from self._attention_part(index, layer)
            yield self._norm(layer.mlp_norm)
            yield from self._mlp_part(index, layer)
        yield self._norm(self._final_norm)
        yield Operation(
            kind=Kind.TAKE_ROWS,
            outputs=shape.hidden_size,
            input=self._normed.data_ptr(),
            output=self._last.data_ptr(),
        )
        yield _linear(self._head, self._last, self._logits_RV, kind=Kind.HEAD)
        if shape.logits_softcap:
            yield Operation(
                kind=Kind.CAP,
                outputs=shape.vocab_size,
                factor=shape.logits_softcap,
                output=self._logits_RV.data_ptr(),
            )

    def _attention_part(self, index: int, layer: DecoderLayer) -> Iterator[Operation]:
        yield from _adapted(index, "qkv", layer.qkv, self._normed, self._qkv)
        yield Operation(
            kind=Kind.ATTEND,
            input=self._qkv.data_ptr(),
            weight=None if layer.query_norm is None else layer.query_norm.data_ptr(),
            other=None if layer.key_norm is None else layer.key_norm.data_ptr(),
            output=self._attended.data_ptr(),
            step=layer.step,
            cache=layer.cache,
        )
        yield from _adapted(index, "output", layer.output, self._attended, self._update)
        yield from self._update_norm(layer.attention_update_norm)

    def _mlp_part(self, index: int, layer: DecoderLayer) -> Iterator[Operation]:
        yield from _adapted(index, "gate_up", layer.gate_up, self._normed, self._gate_up)
        yield Operation(
            kind=Kind.GELU_TANH_MUL if self._shape.activation == "gelu_tanh" else Kind.SILU_MUL,
            outputs=self._shape.intermediate_size,
            input=self._gate_up.data_ptr(),
            output=self._activated.data_ptr(),
        )
        yield from _adapted(index, "down", layer.down, self._activated, self._update)
        yield from self._update_norm(layer.mlp_update_norm)

    def _norm(self, weight_H: torch.Tensor, *, adds_update: bool = True) -> Operation:
        """From the residual, with the update added to it first, to the normed rows."""
        return Operation(
            kind=Kind.NORM,
            outputs=self._shape.hidden_size,
            factor=self._shape.rms_norm_eps,
            offset=self._shape.norm_offset,
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
                outputs=self._shape.hidden_size,
                factor=self._shape.rms_norm_eps,
                offset=self._shape.norm_offset,
                residual=self._update.data_ptr(),
                weight=weight_H.data_ptr(),
                output=self._update.data_ptr(),
            )


def _adapted(
    layer: int, name: LinearName, projection: Projection, in_TK: torch.Tensor, out_TO: torch.Tensor
) -> Iterator[Operation]:
    """A product, and what adapters add to it."""
    yield _linear(projection, in_TK, out_TO)
    yield Operation(
        kind=Kind.ADD_LOW_RANKS,
        inputs=in_TK.shape[1],
        outputs=out_TO.shape[1],
        place=place_of(layer, name),
        input=in_TK.data_ptr(),
        output=out_TO.data_ptr(),
    )


def place_of(layer: int, name: LinearName) -> int:
    """Of a product, among those that adapters can have."""
    return layer * len(LINEAR_NAMES) + LINEAR_NAMES.index(name)


def _linear(projection: Projection, in_TK: torch.Tensor, out_TO: torch.Tensor, kind: Kind = Kind.LINEAR) -> Operation:
    return Operation(
        kind=kind,
        inputs=in_TK.shape[1],
        outputs=out_TO.shape[1],
        input=in_TK.data_ptr(),
        weight=projection.weight.data_ptr(),
        other=None if projection.bias is None else projection.bias.data_ptr(),
        scales=None if projection.scales is None else projection.scales.data_ptr(),
        output=out_TO.data_ptr(),
    )
