"""Linear layers in a type of fewer bits, against torch's own."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from rlserve.trainers.backends.pytorch.fused.linear import joined, round_linear_layers, rounding_once


class Layers(nn.Module):
    """Three linear layers of the same inputs."""

    def __init__(self, *, bias: bool) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(5, size, bias=bias) for size in (3, 1, 4))

    def forward(self, inputs: Tensor) -> Tensor:
        return torch.cat([layer(inputs) for layer in self.layers], dim=-1)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def make_layers(*, bias: bool = True) -> Layers:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Layers(bias=bias)


def test_outputs_are_those_of_rounded_weights() -> None:
    network, inputs = make_layers(), random(2, 3, 5)
    layer = network.layers[0]
    expected = nn.functional.linear(inputs.bfloat16(), layer.weight.bfloat16(), layer.bias.bfloat16())
    round_linear_layers(network, torch.bfloat16)
    assert torch.equal(layer(inputs), expected)
    with torch.no_grad():
        assert torch.equal(layer(inputs), expected)


@pytest.mark.parametrize("bias", [True, False])
def test_joined_layers_have_the_outputs_and_gradients_of_single_ones(bias: bool) -> None:
    network = make_layers(bias=bias)
    inputs, weights = random(2, 3, 5).requires_grad_(), random(2, 3, 8, seed=1)
    expected = network(inputs)
    (expected * weights).sum().backward()
    tensors = [inputs, *network.parameters()]
    expected_gradients = [tensor.grad for tensor in tensors]
    for tensor in tensors:
        tensor.grad = None
    round_linear_layers(network, torch.float32)
    product = joined(list(network.layers), torch.float32)
    assert product is not None
    found = product(inputs)
    (found * weights).sum().backward()
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close([tensor.grad for tensor in tensors], expected_gradients)


def test_frozen_weights_have_no_gradient() -> None:
    network, inputs = make_layers(), random(2, 5).requires_grad_()
    network.requires_grad_(False)
    round_linear_layers(network, torch.float32)
    network(inputs).sum().backward()
    assert inputs.grad is not None
    assert all(parameter.grad is None for parameter in network.parameters())


def test_layers_join_only_if_all_are_rounded_and_alike() -> None:
    network = make_layers()
    assert joined(list(network.layers), torch.float32) is None
    network.layers[1].bias = None
    round_linear_layers(network, torch.float32)
    assert joined(list(network.layers), torch.float32) is None
    assert joined([network.layers[0], network.layers[2]], torch.float32) is not None


def test_weights_are_rounded_once_inside_and_anew_after() -> None:
    network, inputs = make_layers(), random(2, 5)
    round_linear_layers(network, torch.bfloat16)
    before = network(inputs)
    with rounding_once(network.modules()), torch.no_grad():
        network(inputs)
        for parameter in network.parameters():
            parameter += 1.0
        assert torch.equal(network(inputs), before), "rounded again"
    after = network(inputs)
    assert not torch.equal(after, before)
    with rounding_once(network.modules()):
        assert torch.equal(network(inputs), after), "kept from another time"
