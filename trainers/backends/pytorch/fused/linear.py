"""Linear layers that compute in a type of fewer bits than their weights have. The weights are rounded once for many
passes, where autocast rounds them anew in each, and layers of the same inputs are one product.

Legend: N rows, I inputs, O outputs of all layers of a product.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear


class RoundedProduct:
    """The outputs of one or several linear layers of float32 weights, side by side, computed in another type."""

    def __init__(self, layers: Sequence[nn.Linear], dtype: torch.dtype) -> None:
        self._weights = [layer.weight for layer in layers]
        self._biases = [layer.bias for layer in layers if layer.bias is not None]
        self._sizes = [layer.out_features for layer in layers]
        self._dtype = dtype
        self._is_keeping = False
        self._kept: tuple[Tensor, Tensor | None] | None = None

    def __call__(self, inputs: Tensor) -> Tensor:
        """[..., O]"""
        if not torch.is_grad_enabled():
            return linear(inputs.to(self._dtype), *self._rounded())
        return _Product.apply(inputs, *self._rounded(), self._sizes, *self._weights, *self._biases)  # type: ignore[no-any-return, no-untyped-call]

    def parameters(self) -> list[Tensor]:
        """Weights, then biases."""
        return [*self._weights, *self._biases]

    def multiply(self, inputs_NI: Tensor) -> Tensor:
        """[N, O] from inputs of the type, without a graph."""
        return linear(inputs_NI, *self._rounded())

    def added_to(self, base_NO: Tensor, inputs_NI: Tensor) -> Tensor:
        """[N, O] a float32 tensor and ``multiply``, without a graph."""
        weight_OI, bias_O = self._rounded()
        if bias_O is not None or self._dtype != torch.float32:
            return base_NO + linear(inputs_NI, weight_OI, bias_O)
        return torch.addmm(base_NO, inputs_NI, weight_OI.t())

    def of_inputs(self, gradient_NO: Tensor) -> Tensor:
        """[N, I] the gradient of the inputs."""
        return gradient_NO @ self._rounded()[0]

    def of_parameters(self, inputs_NI: Tensor, gradient_NO: Tensor) -> list[Tensor]:
        """The gradients of ``parameters``, float32."""
        return _of_parameters(inputs_NI, gradient_NO, self._sizes, has_bias=bool(self._biases))

    def keep(self, is_keeping: bool) -> None:
        """Whether what is rounded next stays for the passes after it; what was kept is let go of."""
        self._is_keeping, self._kept = is_keeping, None

    def _rounded(self) -> tuple[Tensor, Tensor | None]:
        if self._kept is not None:
            return self._kept
        weights = [weight.detach().to(self._dtype) for weight in self._weights]
        biases = [bias.detach().to(self._dtype) for bias in self._biases]
        rounded = _side_by_side(weights), torch.cat(biases) if biases else None
        if self._is_keeping:
            self._kept = rounded
        return rounded


class RoundedLinear(nn.Linear):
    """An ``nn.Linear`` computed as a ``RoundedProduct``; made by ``round_linear_layers``."""

    product: RoundedProduct

    def forward(self, inputs: Tensor) -> Tensor:
        """[..., O] in the type that is computed in."""
        return self.product(inputs)


def round_linear_layers(network: nn.Module, dtype: torch.dtype) -> None:
    """Let every linear layer of a network, which stays the same object, compute in ``dtype``."""
    layers: list[Any] = [module for module in network.modules() if type(module) is nn.Linear]
    for layer in layers:
        layer.__class__ = RoundedLinear
        layer.product = RoundedProduct([layer], dtype)


def joined(layers: Sequence[Any], dtype: torch.dtype) -> RoundedProduct | None:
    """One product for layers of the same inputs; None where they are not all of ``RoundedLinear``, or only some of
    them have a bias."""
    num_biases = sum(getattr(layer, "bias", None) is not None for layer in layers)
    is_possible = all(isinstance(layer, RoundedLinear) for layer in layers) and num_biases in (0, len(layers))
    return RoundedProduct(layers, dtype) if is_possible else None


@contextmanager
def rounding_once(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Inside, the modules' own weights, which must not change, are rounded at most once."""
    found = [module.__dict__.get("product") for module in modules]
    products = [product for product in found if product is not None]
    for product in products:
        product.keep(True)
    try:
        yield
    finally:
        for product in products:
            product.keep(False)


class _Product(torch.autograd.Function):
    """The gradient of the weights is summed and left in float32; that of the inputs has their type."""

    @staticmethod
    def forward(
        context: Any, inputs: Tensor, rounded_OI: Tensor, bias_O: Tensor | None, sizes: list[int], *_parameters: Tensor
    ) -> Tensor:
        rounded_inputs = inputs.to(rounded_OI.dtype)
        context.save_for_backward(rounded_inputs, rounded_OI)
        context.inputs_dtype = inputs.dtype
        context.sizes = sizes
        return linear(rounded_inputs, rounded_OI, bias_O)

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        inputs, rounded_OI = context.saved_tensors
        inputs_NI, gradient_NO = inputs.flatten(0, -2), gradients[0].flatten(0, -2)
        _, _, _, _, *wants_parameters = context.needs_input_grad
        of_inputs = None
        if context.needs_input_grad[0]:
            of_inputs = (gradient_NO @ rounded_OI).view_as(inputs).to(context.inputs_dtype)
        if not any(wants_parameters):
            return of_inputs, None, None, None, *(None for _ in wants_parameters)
        has_bias = len(wants_parameters) > len(context.sizes)
        return of_inputs, None, None, None, *_of_parameters(inputs_NI, gradient_NO, context.sizes, has_bias=has_bias)


def _of_parameters(inputs_NI: Tensor, gradient_NO: Tensor, sizes: list[int], *, has_bias: bool) -> list[Tensor]:
    """The gradients of weights and biases of layers with these numbers of outputs."""
    gradients = _parts(_float32_product(gradient_NO.t(), inputs_NI), sizes)
    return gradients + _parts(gradient_NO.sum(0, dtype=torch.float32), sizes) if has_bias else gradients


def _float32_product(left: Tensor, right: Tensor) -> Tensor:
    """Summed in float32, and on a GPU not rounded to the type of its factors."""
    if left.dtype == torch.float32:
        return left @ right
    if left.device.type == "cpu":  # has no product with another type of outputs
        return (left @ right).float()
    return torch.mm(left, right, out_dtype=torch.float32)


def _parts(gradient: Tensor, sizes: list[int]) -> list[Tensor]:
    return [gradient] if len(sizes) == 1 else list(gradient.split_with_sizes(sizes))


def _side_by_side(weights: Sequence[Tensor]) -> Tensor:
    """Matrices of as many columns below each other; without a copy where they lie so in memory already."""
    first, *others = weights
    end = first.storage_offset() + first.numel()
    for weight in others:
        if weight.untyped_storage().data_ptr() != first.untyped_storage().data_ptr() or weight.storage_offset() != end:
            return torch.cat([first, *others])
        end += weight.numel()
    return first.as_strided((sum(map(len, weights)), first.shape[1]), first.stride())
