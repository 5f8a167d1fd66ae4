"""A plain decoder on a CPU: a step is one call of compiled code, from the token ids to the logits.

On a small model the calls of single operations, and waking the threads for each, cost more than what they compute.
So the operations of a step are written down once, with the addresses of their tensors, and a team of threads runs
the whole list (``program.cpp``). What a row gets does not depend, to the bit, on the rows beside it, nor on the number
of threads.

    embed ─► layers … ─┬─► last layer, of all rows ─► logits of any ones
                       └─► last layer, of rows whose next token is wanted ─► their logits

Of the last layer other rows see nothing but keys and values. So where few rows are wanted, as in a prompt, only those
are computed there, and the others if somebody asks for their logits afterwards.

Legend: T tokens, R rows whose next token is wanted, V vocabulary; H hidden size; O outputs and K inputs of a product.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol

import torch

from rlserve.native.low_rank import StepLowRanks
from rlserve.native.program import Kind, Operation, Program, Projection, cap

LinearName = Literal["qkv", "output", "gate_up", "down"]
"""The products of a layer."""
LINEAR_NAMES: tuple[LinearName, ...] = ("qkv", "output", "gate_up", "down")
"""In their order: the place of a product for adapters is its layer times their number, and its index."""


_FEW = 2
"""Rows for each whose logits are wanted, from which on the others are left out of the last layer."""


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


@dataclass(frozen=True, kw_only=True)
class _Rows:
    """Work space of some rows of a step, beside queries, keys and values."""

    residual: torch.Tensor
    attended: torch.Tensor
    update: torch.Tensor
    """Of the residual."""
    normed: torch.Tensor
    gate_up: torch.Tensor
    activated: torch.Tensor

    @staticmethod
    def empty(shape: DecoderShape, num_rows: int, dtype: torch.dtype) -> _Rows:
        widths = {
            "residual": shape.hidden_size,
            "attended": shape.query_size,
            "update": shape.hidden_size,
            "normed": shape.hidden_size,
            "gate_up": 2 * shape.intermediate_size,
            "activated": shape.intermediate_size,
        }
        return _Rows(**{name: torch.empty(num_rows, width, dtype=dtype) for name, width in widths.items()})

    def with_inputs_of_own(self, num_rows: int) -> _Rows:
        """Of so many rows, whose residual and attention are written beside the others, and all else over them."""
        residual, attended = self.residual, self.attended
        return replace(
            self,
            residual=residual.new_empty(num_rows, residual.shape[1]),
            attended=attended.new_empty(num_rows, attended.shape[1]),
        )


@dataclass(frozen=True, kw_only=True)
class _Programs:
    whole: Program
    of_wanted: Program
    """The last layer, but for keys and values, only of the rows whose logits are wanted."""
    rest: Program
    """After that: the last layer of all rows, up to the last norm."""


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

        self._qkv = torch.empty(max_num_tokens, shape.query_size + 2 * shape.kv_size, dtype=self._dtype)
        self._all = _Rows.empty(shape, max_num_tokens, self._dtype)
        self._wanted = self._all.with_inputs_of_own(max_num_rows)
        self._last = torch.empty(max_num_rows, shape.hidden_size, dtype=self._dtype)
        self._queries = torch.empty(max_num_rows, shape.query_size, dtype=self._dtype)
        self._logits_RV = torch.empty(max_num_rows, shape.vocab_size)
        self._programs: _Programs | None = None
        self._unfinished: tuple[torch.Tensor, torch.Tensor] | None = None
        """What the last step was run on, if the last layer was computed of the wanted rows alone."""

    def forward(
        self, token_ids_T: torch.Tensor, last_rows_R: torch.Tensor, low_ranks: StepLowRanks | None = None
    ) -> torch.Tensor:
        """Compute a step and return the logits [R, V], float32, of the tokens at ``last_rows_R``; the tensor is
        overwritten by the next step. Both are int64. ``low_ranks`` are added to products within layers."""
        assert self._programs is not None, "the weights were never filled"
        if low_ranks is None and _FEW * len(last_rows_R) <= len(token_ids_T):
            self._programs.of_wanted.run(token_ids_T, last_rows_R)
            self._unfinished = token_ids_T, last_rows_R
        else:
            self._programs.whole.run(token_ids_T, last_rows_R, low_ranks)
            self._unfinished = None
        return self._logits_RV[: len(last_rows_R)]

    def logits_of(self, first: int, end: int) -> torch.Tensor:
        """Logits [end - first, V] of the tokens [first, end) of the step computed last, in memory of their own. Where
        the step began is still described in the ``StepArguments``."""
        if self._unfinished is not None:
            assert self._programs is not None
            self._programs.rest.run(*self._unfinished)
            self._unfinished = None
        logits = self._head.multiply(self._all.normed[first:end], torch.empty(end - first, self._shape.vocab_size))
        return cap(logits, self._shape.logits_softcap) if self._shape.logits_softcap else logits

    def weights_changed(self) -> None:
        """Must be called after the weights were written to, before the next step."""
        for projection in self._projections():
            projection.weight_changed()
        self._programs = _Programs(
            whole=self._program(*self._until_last(), *self._last_of_all(), *self._logits_of_last()),
            of_wanted=self._program(*self._until_last(), *self._last_of_wanted()),
            rest=self._program(
                self._norm(self._all, self._layers[-1].input_norm, adds_update=False), *self._last_of_all()
            ),
        )
        self._unfinished = None

    def weights_released(self) -> None:
        """Forget what was derived from weights whose memory is freed."""
        self._programs = self._unfinished = None
        for projection in self._projections():
            projection.weight_released()

    def _projections(self) -> Iterator[Projection]:
        yield self._head
        for layer in self._layers:
            yield from layer.projections()

    def _program(self, *operations: Operation) -> Program:
        return Program(operations, self._dtype, step=self._layers[0].step, is_int8_cache=self._is_int8_cache)

    def _until_last(self) -> Iterator[Operation]:
        """Up to the first norm of the last layer."""
        shape, rows = self._shape, self._all
        yield Operation(
            kind=Kind.EMBED,
            outputs=shape.hidden_size,
            factor=torch.tensor(shape.embedding_scale, dtype=self._dtype).item(),
            weight=self._embedding.data_ptr(),
            output=rows.residual.data_ptr(),
        )
        for index, layer in enumerate(self._layers):
            if index > 0:
                yield from self._layer(index - 1)
            yield self._norm(rows, layer.input_norm, adds_update=index > 0)

    def _layer(self, index: int) -> Iterator[Operation]:
        """What follows the first norm, of all rows, up to what is added to the residual last."""
        yield from _adapted(index, "qkv", self._layers[index].qkv, self._all.normed, self._qkv)
        yield self._attention(index)
        yield from self._rest_of_layer(index, self._all)

    def _attention(self, index: int) -> Operation:
        layer = self._layers[index]
        return Operation(
            kind=Kind.ATTEND,
            input=self._qkv.data_ptr(),
            weight=None if layer.query_norm is None else layer.query_norm.data_ptr(),
            other=None if layer.key_norm is None else layer.key_norm.data_ptr(),
            output=self._all.attended.data_ptr(),
            step=layer.step,
            cache=layer.cache,
        )

    def _rest_of_layer(self, index: int, rows: _Rows) -> Iterator[Operation]:
        """What follows the attention, up to what is added to the residual last."""
        layer = self._layers[index]
        yield from _adapted(index, "output", layer.output, rows.attended, rows.update)
        yield from self._update_norm(rows, layer.attention_update_norm)
        yield self._norm(rows, layer.mlp_norm)
        yield from _adapted(index, "gate_up", layer.gate_up, rows.normed, rows.gate_up)
        yield Operation(
            kind=Kind.GELU_TANH_MUL if self._shape.activation == "gelu_tanh" else Kind.SILU_MUL,
            outputs=self._shape.intermediate_size,
            input=rows.gate_up.data_ptr(),
            output=rows.activated.data_ptr(),
        )
        yield from _adapted(index, "down", layer.down, rows.activated, rows.update)
        yield from self._update_norm(rows, layer.mlp_update_norm)

    def _last_of_all(self) -> Iterator[Operation]:
        """What follows the first norm of the last layer, up to the last norm."""
        yield from self._layer(len(self._layers) - 1)
        yield self._norm(self._all, self._final_norm)

    def _logits_of_last(self) -> Iterator[Operation]:
        yield _take_rows(self._all.normed, self._last)
        yield from self._logits_from(self._last)

    def _last_of_wanted(self) -> Iterator[Operation]:
        """From the first norm of the last layer to the logits."""
        index, query_size = len(self._layers) - 1, self._shape.query_size
        qkv = self._layers[index].qkv
        yield _take_rows(self._all.normed, self._last)
        queries = _linear(qkv, self._last, self._queries)  # their outputs come first
        keys_and_values = _linear(qkv, self._all.normed, self._qkv)
        keys_and_values.first_output = query_size
        put_queries = Operation(
            kind=Kind.PUT_ROWS,
            inputs=query_size,
            outputs=self._qkv.shape[1],
            input=self._queries.data_ptr(),
            output=self._qkv.data_ptr(),
        )
        attention = self._attention(index)
        queries.of_wanted = attention.of_wanted = 1
        yield from (queries, keys_and_values, put_queries, attention)
        yield _take_rows(self._all.residual, self._wanted.residual)
        yield _take_rows(self._all.attended, self._wanted.attended)
        for operation in (
            *self._rest_of_layer(index, self._wanted),
            self._norm(self._wanted, self._final_norm),
        ):
            if operation.kind != Kind.ADD_LOW_RANKS:  # which counts tokens
                operation.of_wanted = 1
                yield operation
        yield from self._logits_from(self._wanted.normed)

    def _logits_from(self, rows_RH: torch.Tensor) -> Iterator[Operation]:
        shape = self._shape
        yield _linear(self._head, rows_RH, self._logits_RV, kind=Kind.HEAD)
        if shape.logits_softcap:
            yield Operation(
                kind=Kind.CAP,
                outputs=shape.vocab_size,
                factor=shape.logits_softcap,
                output=self._logits_RV.data_ptr(),
            )

    def _norm(self, rows: _Rows, weight_H: torch.Tensor, *, adds_update: bool = True) -> Operation:
        """From the residual, with the update added to it first, to the normed rows."""
        return Operation(
            kind=Kind.NORM,
            outputs=self._shape.hidden_size,
            factor=self._shape.rms_norm_eps,
            offset=self._shape.norm_offset,
            residual=rows.residual.data_ptr(),
            input=rows.update.data_ptr() if adds_update else None,
            weight=weight_H.data_ptr(),
            output=rows.normed.data_ptr(),
        )

    def _update_norm(self, rows: _Rows, weight_H: torch.Tensor | None) -> Iterator[Operation]:
        """The norm of what is added to the residual, in place, where the model has one."""
        if weight_H is not None:
            yield Operation(
                kind=Kind.NORM,
                outputs=self._shape.hidden_size,
                factor=self._shape.rms_norm_eps,
                offset=self._shape.norm_offset,
                residual=rows.update.data_ptr(),
                weight=weight_H.data_ptr(),
                output=rows.update.data_ptr(),
            )


def _take_rows(from_TW: torch.Tensor, to_RW: torch.Tensor) -> Operation:
    """Copy the rows whose logits are wanted."""
    return Operation(kind=Kind.TAKE_ROWS, outputs=from_TW.shape[1], input=from_TW.data_ptr(), output=to_RW.data_ptr())


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
