"""The decoder: embedding, layers of attention and MLP, output head, over the flat tokens of one step.

Legend: T tokens, H hidden size, X columns of a projection, R rows whose next token is wanted, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from rlserve.engine.attention.base import AttentionBackend
from rlserve.engine.kernels.base import Kernels
from rlserve.engine.models.base import ModelSpec
from rlserve.engine.models.linear import Linear
from rlserve.engine.models.parameters import LayerParameters, Parameters


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
    def __init__(self, weights: LayerParameters) -> None:
        self.weights = weights
        self.qkv = Linear(weights.qkv, weights.qkv_bias)
        self.output = Linear(weights.output, weights.output_bias)
        self.gate_up = Linear(weights.gate_up, weights.gate_up_bias)
        self.down = Linear(weights.down, weights.down_bias)


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
    ) -> None:
        self._spec = spec
        self._parameters = parameters
        self._attention = attention
        self._kernels = kernels
        self._layers = [_Layer(weights) for weights in parameters.layers]
        self._head = Linear(parameters.head, None)
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
        self._logits_RV = torch.empty(max_num_rows, spec.vocab_size, dtype=dtype, device=device)

    def forward(self, token_ids_T: torch.Tensor, last_rows_R: torch.Tensor) -> torch.Tensor:
        """Compute the step that the attention backend has begun, and return the logits [R, V] of the tokens at
        ``last_rows_R``; the tensor is overwritten by the next step. Waits for no device, so that it can be
        captured as a CUDA graph."""
        spec, kernels = self._spec, self._kernels
        work = self._work_space(len(token_ids_T))
        torch.index_select(self._parameters.embedding, 0, token_ids_T, out=work.residual)
        hidden_TH = work.hidden
        for index, layer in enumerate(self._layers):
            weights = layer.weights
            if index == 0:
                kernels.rms_norm(work.residual, weights.input_norm, work.normed, spec.rms_norm_eps)
            else:
                kernels.add_rms_norm(work.residual, hidden_TH, weights.input_norm, work.normed, spec.rms_norm_eps)
            qkv_TX = layer.qkv(work.normed, work.qkv)
            self._attention.attend(index, qkv_TX, weights.query_norm, weights.key_norm, work.attended)
            hidden_TH = layer.output(work.attended, work.hidden)
            kernels.add_rms_norm(work.residual, hidden_TH, weights.mlp_norm, work.normed, spec.rms_norm_eps)
            kernels.silu_mul(layer.gate_up(work.normed, work.gate_up), work.activated)
            hidden_TH = layer.down(work.activated, work.hidden)
        kernels.add_rms_norm(work.residual, hidden_TH, self._parameters.final_norm, work.normed, spec.rms_norm_eps)
        last_RH = work.normed.index_select(0, last_rows_R)
        return self._head(last_RH, self._logits_RV[: len(last_rows_R)])

    def weights_changed(self) -> None:
        """Must be called after the parameters were written to, before the next step."""
        for linear in self._linears():
            linear.weight_changed()

    def weights_released(self) -> None:
        """Forget what was derived from parameters whose memory is freed."""
        for linear in self._linears():
            linear.weight_released()

    def _linears(self) -> Iterator[Linear]:
        yield self._head
        for layer in self._layers:
            yield from (layer.qkv, layer.output, layer.gate_up, layer.down)

    def _work_space(self, num_tokens: int) -> _Buffers:
        """Views of the buffers, kept per size: making seven of them costs as much as a small matrix product."""
        if num_tokens not in self._views:
            self._views[num_tokens] = self._buffers.rows(num_tokens)
        return self._views[num_tokens]
