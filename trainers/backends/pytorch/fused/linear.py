"""Linear layers that compute in a type of fewer bits than their weights have. The weights are rounded once for many
passes, where autocast rounds them anew in each, and layers of the same inputs are one product.

Legend: N rows, I inputs, O outputs of all layers of a product.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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
        rounded = self._kept
        if rounded is None:
            rounded = self._rounded()
            if self._is_keeping:
                self._kept = rounded
        if not torch.is_grad_enabled():
            return linear(inputs.to(self._dtype), *rounded)
        return _Product.apply(inputs, *rounded, self._sizes, *self._weights, *self._biases)  # type: ignore[no-any-return, no-untyped-call]

    def keep(self, is_keeping: bool) -> None:
        """Whether what is rounded next stays for the passes after it; what was kept is let go of."""
        self._is_keeping, self._kept = is_keeping, None

    def _rounded(self) -> tuple[Tensor, Tensor | None]:
        weights = [weight.detach().to(self._dtype) for weight in self._weights]
        biases = [bias.detach().to(self._dtype) for bias in self._biases]
        return torch.cat(weights) if len(weights) > 1 else weights[0], torch.cat(biases) if biases else None


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
def rounding_once(*networks: nn.Module) -> Iterator[None]:
    """Inside, the networks' weights, which must not change, are rounded at most once."""
    found = [module.__dict__.get("product") for network in networks for module in network.modules()]
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
        of_weights: list[Tensor | None] = [None] * len(context.sizes)
        of_biases: list[Tensor | None] = [None] * (len(wants_parameters) - len(context.sizes))
        if any(wants_parameters):
            of_weights = _parts(_float32_product(gradient_NO.t(), inputs_NI), context.sizes)
            if of_biases:
                of_biases = _parts(gradient_NO.sum(0, dtype=torch.float32), context.sizes)
        return of_inputs, None, None, None, *of_weights, *of_biases


def _float32_product(left: Tensor, right: Tensor) -> Tensor:
    """Summed in float32, and not rounded to the type of its factors."""
    return left @ right if left.dtype == torch.float32 else torch.mm(left, right, out_dtype=torch.float32)


def _parts(gradient: Tensor, sizes: list[int]) -> list[Tensor | None]:
    return [gradient] if len(sizes) == 1 else list(gradient.split_with_sizes(sizes))
