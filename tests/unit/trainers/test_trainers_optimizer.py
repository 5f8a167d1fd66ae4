"""AdamW on the flat vector against torch's own on separate parameters."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from rlserve.trainers import TorchTrainerConfig
from rlserve.trainers.backends.pytorch.optimizer import FlatAdamW
from rlserve.trainers.backends.pytorch.parameters import FlatParameters

CPU = torch.device("cpu")


def two_modules() -> dict[str, nn.Module]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return {"policy": nn.Linear(5, 7), "critic": nn.Linear(3, 1)}


@pytest.mark.parametrize("decay_norms_and_biases", [False, True])
def test_updates_equal_torch_adamw_with_clipping_per_module(decay_norms_and_biases: bool) -> None:
    config = TorchTrainerConfig(
        learning_rate=0.1,
        critic_learning_rate=0.01,
        weight_decay=0.1,
        decay_norms_and_biases=decay_norms_and_biases,
        max_grad_norm=0.5,
    )
    flat_modules, plain_modules = two_modules(), two_modules()
    flat = FlatParameters(flat_modules, CPU)
    optimizer = FlatAdamW(config, flat)
    plain = torch.optim.AdamW(
        [
            {
                "params": [parameter],
                "lr": rate,
                "weight_decay": 0.1 if kind == "weight" or decay_norms_and_biases else 0.0,
            }
            for name, rate in (("policy", 0.1), ("critic", 0.01))
            for kind, parameter in plain_modules[name].named_parameters()
        ],
        betas=(0.9, 0.95),
    )
    generator = torch.Generator().manual_seed(1)
    for scale in (10.0, 0.01, 1.0):
        gradient = torch.zeros_like(flat.vector)
        for name, module in plain_modules.items():
            for parameter_name, parameter in module.named_parameters():
                parameter.grad = scale * torch.randn(parameter.shape, generator=generator)
                flat.views(name, gradient)[parameter_name].copy_(parameter.grad)
            nn.utils.clip_grad_norm_(module.parameters(), 0.5)
        plain.step()
        optimizer.update(gradient, optimizer.gradient_norms(gradient))
    for name, module in plain_modules.items():
        for parameter_name, parameter in module.named_parameters():
            ours = dict(flat_modules[name].named_parameters())[parameter_name]
            torch.testing.assert_close(ours, parameter, rtol=1e-5, atol=1e-6)


def test_warm_up_raises_both_learning_rates_linearly() -> None:
    config = TorchTrainerConfig(learning_rate=4.0, critic_learning_rate=8.0, num_warmup_steps=4)
    flat = FlatParameters(two_modules(), CPU)
    optimizer = FlatAdamW(config, flat)
    rates = []
    for _ in range(6):
        rates.append(optimizer.learning_rates())
        gradient = torch.zeros_like(flat.vector)
        optimizer.update(gradient, optimizer.gradient_norms(gradient))
    assert [rate["policy"] for rate in rates] == pytest.approx([1.0, 2.0, 3.0, 4.0, 4.0, 4.0])
    assert [rate["critic"] for rate in rates] == pytest.approx([2.0, 4.0, 6.0, 8.0, 8.0, 8.0])


def test_modules_compute_with_the_flat_vector_and_tied_parameters_occur_once() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(5, 3)
            self.head = nn.Linear(3, 5, bias=False)
            self.head.weight = self.embedding.weight

    module = Tied()
    flat = FlatParameters({"tied": module}, CPU)
    assert list(flat.views("tied", flat.vector)) == ["embedding.weight"]
    flat.vector.fill_(2.0)
    assert module.head(torch.ones(3)).tolist() == [6.0] * 5
    gradient = torch.zeros_like(flat.vector)
    flat.collect_gradients_in(gradient)
    module.head(module.embedding(torch.tensor([1]))).sum().backward()
    assert flat.views("tied", gradient)["embedding.weight"][:, 0].tolist() == [2.0, 12.0, 2.0, 2.0, 2.0]
