"""The decoder: embedding, layers of attention and MLP, output head, over the flat tokens of one step.

Legend: T tokens, H hidden size, X columns of a projection, R rows whose next token is wanted, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial

import torch

from rlserve.engine.adapters.adapter import StepAdapters
from rlserve.engine.attention.base import AttentionBackend
from rlserve.engine.decoder.layer_parameters import LayerParameters
from rlserve.engine.decoder.linear import Linear, RowBlockLinear
from rlserve.engine.decoder.mlp import Activation, ExpertMlp, GatedMlp, activation_of
from rlserve.engine.decoder.parameters import Parameters
from rlserve.engine.kernels.base import Kernels
from rlserve.engine.models.base import ModelSpec
from rlserve.native.decoder_program import LinearName


@dataclass(frozen=True, kw_only=True)
class _Buffers:
    """Work space for one step; every tensor has T rows."""

    residual: torch.Tensor
    hidden: torch.Tensor
    normed: torch.Tensor
    qkv: torch.Tensor
    attended: torch.Tensor
    gate_up: torch.Tensor
    activated: torch.Tensor

    def rows(self, num_tokens: int) -> _Buffers:
        return _Buffers(**{name: tensor[:num_tokens] for name, tensor in vars(self).items()})


class _Layer:
    def __init__(self, spec: ModelSpec, weights: LayerParameters, activation: Activation, linear: type[Linear]) -> None:
        self.weights = weights
        self.qkv = linear(weights.qkv, weights.qkv_bias)
        self.output = linear(weights.output, weights.output_bias)
        self.mlp: GatedMlp | ExpertMlp
        if spec.experts is not None and weights.mlp.router is not None:
            self.mlp = ExpertMlp(spec.experts, weights.mlp, activation, linear)
        else:
            self.mlp = GatedMlp(weights.mlp, activation, linear)

    def linears(self) -> Iterator[Linear]:
        yield from (self.qkv, self.output)
        yield from self.mlp.linears()


class Decoder:
    """Runs the model of ``parameters`` with the given kernels. Holds the work space of the largest step."""

    def __init__(
        self,
        spec: ModelSpec,
        parameters: Parameters,
        attention: AttentionBackend,
        kernels: Kernels,
        *,
        max_num_tokens: int,
        max_num_rows: int,
        deterministic: bool = False,
    ) -> None:
        self._spec = spec
        self._parameters = parameters
        self._attention = attention
        self._kernels = kernels
        self._deterministic = deterministic
        activation = activation_of(spec, kernels, deterministic=deterministic)
        self.linear: type[Linear] = RowBlockLinear if deterministic else Linear
        """How it multiplies."""
        self._layers = [_Layer(spec, weights, activation, self.linear) for weights in parameters.layers]
        self._head = self.linear(parameters.head, None)
        dtype, device = parameters.embedding.dtype, parameters.embedding.device
        columns = {
            "residual": spec.hidden_size,
            "hidden": spec.hidden_size,
            "normed": spec.hidden_size,
            "qkv": spec.query_size + 2 * spec.kv_size,
            "attended": spec.query_size,
            "gate_up": 2 * spec.intermediate_size,
            "activated": spec.intermediate_size,
        }
        self._buffers = _Buffers(
            **{name: torch.empty(max_num_tokens, width, dtype=dtype, device=device) for name, width in columns.items()}
        )
        self._views: dict[int, _Buffers] = {}
        self._embedding_scale = torch.tensor(spec.embedding_scale, dtype=dtype).item()
        self._logits_RV = torch.empty(max_num_rows, spec.vocab_size, dtype=dtype, device=device)

    def forward(
        self, token_ids_T: torch.Tensor, last_rows_R: torch.Tensor, adapters: StepAdapters | None = None
    ) -> torch.Tensor:
        """Compute the step that the attention backend has begun, and return the logits [R, V] of the tokens at
        ``last_rows_R``; the tensor is overwritten by the next step. Waits for no device, so that it can be
        captured as a CUDA graph. ``adapters`` add to the products within layers."""
        after = _leave if adapters is None else adapters.add
        kernels, eps, offset = self._kernels, self._spec.rms_norm_eps, self._spec.norm_offset
        work = self._work_space(len(token_ids_T))
        self._embed(token_ids_T, work.residual)
        if self._embedding_scale != 1.0:
            work.residual.mul_(self._embedding_scale)
        hidden_TH = work.hidden
        for index, layer in enumerate(self._layers):
            weights = layer.weights
            if index == 0:
                kernels.rms_norm(work.residual, weights.input_norm, work.normed, eps, offset)
            else:
                kernels.add_rms_norm(work.residual, hidden_TH, weights.input_norm, work.normed, eps, offset)
            qkv_TX = layer.qkv(work.normed, work.qkv)
            after(index, "qkv", work.normed, qkv_TX)
            self._attention.attend(index, qkv_TX, weights.query_norm, weights.key_norm, work.attended)
            hidden_TH = layer.output(work.attended, work.hidden)
            after(index, "output", work.attended, hidden_TH)
            hidden_TH = self._update(hidden_TH, weights.attention_update_norm)
            kernels.add_rms_norm(work.residual, hidden_TH, weights.mlp_norm, work.normed, eps, offset)
            hidden_TH = layer.mlp(work.normed, work.gate_up, work.activated, work.hidden, partial(after, index))
            hidden_TH = self._update(hidden_TH, weights.mlp_update_norm)
        kernels.add_rms_norm(work.residual, hidden_TH, self._parameters.final_norm, work.normed, eps, offset)
        last_RH = work.normed.index_select(0, last_rows_R)
        return self._capped(self._head(last_RH, self._logits_RV[: len(last_rows_R)]))

    def logits_of(self, first: int, end: int) -> torch.Tensor:
        """Logits [end - first, V] of the tokens [first, end) of the step computed last, in memory of their own."""
        normed_TH = self._buffers.normed[first:end]
        return self._capped(self._head(normed_TH, self._logits_RV.new_empty(end - first, self._spec.vocab_size)))

    def packed_ahead(self, beside: Mapping[int, torch.Tensor]) -> tuple[torch.Tensor | None, ...]:
        """What :meth:`exchanged` takes, made by any thread from the parameters that are to be computed with instead, by
        the ids of those now."""
        return tuple(linear.packed_ahead(beside) for linear in self._linears())

    def exchanged(self, packed_ahead: tuple[torch.Tensor | None, ...]) -> None:
        """The parameters were exchanged; :meth:`weights_changed` follows."""
        for linear, packed in zip(self._linears(), packed_ahead, strict=True):
            linear.exchanged(packed)

    def weights_changed(self) -> None:
        """Must be called after the parameters were written to or exchanged, before the next step."""
        for linear in self._linears():
            linear.weight_changed()

    def weights_released(self) -> None:
        """Forget what was derived from parameters whose memory is freed."""
        for linear in self._linears():
            linear.weight_released()

    def _embed(self, token_ids_T: torch.Tensor, out_TH: torch.Tensor) -> None:
        torch.index_select(self._parameters.embedding, 0, token_ids_T, out=out_TH)

    def _update(self, hidden_TH: torch.Tensor, norm_H: torch.Tensor | None) -> torch.Tensor:
        """What is added to the residual: normalised in place, where the model does so."""
        if norm_H is not None:
            self._kernels.rms_norm(hidden_TH, norm_H, hidden_TH, self._spec.rms_norm_eps, self._spec.norm_offset)
        return hidden_TH

    def _capped(self, logits_RV: torch.Tensor) -> torch.Tensor:
        cap = self._spec.logits_softcap
        if not cap:
            return logits_RV
        # Row by row where bits count: the last few numbers of a tensor take another path through tanh.
        for part in logits_RV if self._deterministic else (logits_RV,):
            part.div_(cap).tanh_().mul_(cap)
        return logits_RV

    def _linears(self) -> Iterator[Linear]:
        yield self._head
        for layer in self._layers:
            yield from layer.linears()

    def _work_space(self, num_tokens: int) -> _Buffers:
        """Views of the buffers, kept per size: making seven of them costs as much as a small matrix product."""
        if num_tokens not in self._views:
            self._views[num_tokens] = self._buffers.rows(num_tokens)
        return self._views[num_tokens]


def _leave(layer: int, name: LinearName, x_TK: torch.Tensor, out_TN: torch.Tensor) -> None:
    """Change nothing of a product."""
