"""What follows attention in a layer: one gated MLP, or a mixture of many small ones.

Legend: T tokens, H hidden size, I intermediate size, E experts, M experts of one token, N tokens of one expert.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch

from rlserve.engine.decoder.layer_parameters import MlpParameters
from rlserve.engine.decoder.linear import Linear
from rlserve.engine.kernels.base import Kernels
from rlserve.engine.models.base import ExpertsSpec, ModelSpec
from rlserve.native.decoder_program import LinearName

Activation = Callable[[torch.Tensor, torch.Tensor], None]
"""From gate and up [T, 2 I] to [T, I]."""
AfterProduct = Callable[[LinearName, torch.Tensor, torch.Tensor], None]
"""Is given each product's name, inputs and outputs, which it may change in place."""


def activation_of(spec: ModelSpec, kernels: Kernels, *, deterministic: bool) -> Activation:
    """The kernel that the model's MLPs use."""
    if spec.activation == "gelu":
        return partial(_row_by_row, kernels.gelu_mul) if deterministic else kernels.gelu_mul
    return kernels.gelu_tanh_mul if spec.activation == "gelu_tanh" else kernels.silu_mul


def _row_by_row(activation: Activation, gate_up_T2I: torch.Tensor, out_TI: torch.Tensor) -> None:
    """Where bits count: the last few numbers of a tensor take another path through the error function."""
    for row in range(len(out_TI)):
        activation(gate_up_T2I[row : row + 1], out_TI[row : row + 1])


class GatedMlp:
    """``down(activation(gate(x)) * up(x))`` (arXiv 2002.05202)."""

    def __init__(self, weights: MlpParameters, activation: Activation, linear: type[Linear]) -> None:
        self._gate_up = linear(weights.gate_up, weights.gate_up_bias)
        self._down = linear(weights.down, weights.down_bias)
        self._activation = activation

    def __call__(
        self,
        x_TH: torch.Tensor,
        gate_up_T2I: torch.Tensor,
        activated_TI: torch.Tensor,
        out_TH: torch.Tensor,
        after: AfterProduct,
    ) -> torch.Tensor:
        """[T, H], in ``out_TH`` or in a new tensor; the others are work space."""
        gate_up_T2I = self._gate_up(x_TH, gate_up_T2I)
        after("gate_up", x_TH, gate_up_T2I)
        self._activation(gate_up_T2I, activated_TI)
        out_TH = self._down(activated_TI, out_TH)
        after("down", activated_TI, out_TH)
        return out_TH

    def linears(self) -> Iterator[Linear]:
        """All matrix products, for updates of their weights."""
        yield from (self._gate_up, self._down)


class ExpertMlp:
    """A router picks a few experts for each token, and their answers are added up, weighted (arXiv 1701.06538).

    Tokens are sorted by expert, so each expert that has any computes all of its tokens in one product.
    """

    def __init__(self, spec: ExpertsSpec, weights: MlpParameters, activation: Activation, linear: type[Linear]) -> None:
        assert weights.router is not None
        self._spec = spec
        self._activation = activation
        self._router = linear(weights.router, None)
        self._gate_up = [linear(part, None) for part in weights.gate_up.chunk(spec.num_experts)]
        self._down = [linear(part, None) for part in weights.down.chunk(spec.num_experts)]

    def __call__(
        self,
        x_TH: torch.Tensor,
        gate_up_T2I: torch.Tensor,
        activated_TI: torch.Tensor,
        out_TH: torch.Tensor,
        after: AfterProduct,
    ) -> torch.Tensor:
        """[T, H], in ``out_TH``; the work space of the plain MLP does not fit and is left alone, and so is ``after``:
        experts' products stay as they are."""
        num_chosen = self._spec.num_experts_per_token
        share_TM, expert_TM = self._route(x_TH)
        order = expert_TM.flatten().argsort(stable=True)
        tokens = order // num_chosen
        shares = share_TM.flatten()[order].unsqueeze(1)
        counts = expert_TM.flatten().bincount(minlength=self._spec.num_experts).tolist()
        out_TH.zero_()
        start = 0
        for expert, count in enumerate(counts):
            if count:
                tokens_N = tokens[start : start + count]
                answer_NH = self._expert(expert, x_TH[tokens_N])
                out_TH.index_add_(0, tokens_N, answer_NH * shares[start : start + count])
                start += count
        return out_TH

    def linears(self) -> Iterator[Linear]:
        """All matrix products, for updates of their weights."""
        yield self._router
        yield from self._gate_up
        yield from self._down

    def _route(self, x_TH: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """[T, M] weights of each token's experts in the type of ``x``, and which experts they are."""
        scores_TE = self._router(x_TH, x_TH.new_empty(len(x_TH), self._spec.num_experts))
        share_TM, expert_TM = scores_TE.float().softmax(dim=-1).topk(self._spec.num_experts_per_token, dim=-1)
        if self._spec.normalise:
            share_TM = share_TM / share_TM.sum(dim=-1, keepdim=True)
        return share_TM.to(x_TH.dtype), expert_TM

    def _expert(self, expert: int, x_NH: torch.Tensor) -> torch.Tensor:
        num_tokens, size = len(x_NH), self._spec.intermediate_size
        gate_up = self._gate_up[expert](x_NH, x_NH.new_empty(num_tokens, 2 * size))
        activated = x_NH.new_empty(num_tokens, size)
        self._activation(gate_up, activated)
        return self._down[expert](activated, torch.empty_like(x_NH))
