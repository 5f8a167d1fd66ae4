"""AdamW on the flat vector against torch's own on separate parameters."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor, nn

from rlserve.trainers import TorchTrainerConfig
from rlserve.trainers.backends.pytorch import optimizer as optimizer_module
from rlserve.trainers.backends.pytorch.optimizer import ShardedAdamW, compacted, joined, rearranged
from rlserve.trainers.backends.pytorch.parameters import FlatParameters
from rlserve.trainers.elastic.intervals import Interval

CPU = torch.device("cpu")
SEGMENTS = {"policy": slice(0, 64), "critic": slice(64, 96)}
"""Of ``two_modules``: 35 and 7 numbers in the first, each tensor filled up to 16; 3 and 1 in the other."""


def two_modules() -> dict[str, nn.Module]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return {"policy": nn.Linear(5, 7), "critic": nn.Linear(3, 1)}


def holding(optimizer: ShardedAdamW, elements: Interval) -> ShardedAdamW:
    optimizer.hold([optimizer.new_moments(elements)])
    return optimizer


def update(optimizers: list[ShardedAdamW], gradient: Tensor) -> None:
    """As the ranks do that hold the state together."""
    norms = {name: float(gradient[where].norm()) for name, where in SEGMENTS.items()}
    for optimizer in optimizers:
        parts = [optimizer.own_parts([name], gradient[where]) for name, where in SEGMENTS.items()]
        optimizer.update(parts[0] | parts[1], norms)


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
    # Two ranks' worth of moments, cut in the middle of a parameter.
    optimizers = [holding(ShardedAdamW(config, flat), shard) for shard in (Interval(0, 16), Interval(16, 96))]
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
        update(optimizers, gradient)
    for name, module in plain_modules.items():
        for parameter_name, parameter in module.named_parameters():
            ours = dict(flat_modules[name].named_parameters())[parameter_name]
            torch.testing.assert_close(ours, parameter, rtol=1e-5, atol=1e-6)


def test_a_critics_head_has_a_rate_of_its_own_and_the_critics_norm() -> None:
    """Against AdamW written out."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        critic = nn.ModuleDict({"backbone": nn.Linear(3, 20), "value_head": nn.Linear(20, 1)})
    plain = {name: parameter.detach().double().clone() for name, parameter in critic.named_parameters()}
    flat = FlatParameters({"critic": critic}, CPU)
    config = TorchTrainerConfig(critic_learning_rate=0.1, critic_head_learning_rate=0.3, max_grad_norm=0.5)
    # Three ranks' worth of moments, cut in the middle of backbone and head.
    shards = [Interval(0, 32), Interval(32, 96), Interval(96, flat.vector.numel())]
    optimizers = [holding(ShardedAdamW(config, flat), shard) for shard in shards]
    generator = torch.Generator().manual_seed(1)
    first, second = ({name: torch.zeros_like(value) for name, value in plain.items()} for _ in range(2))
    for step in (1, 2, 3):
        gradient = torch.zeros_like(flat.vector)
        views = flat.views("critic", gradient)
        for view in views.values():
            view.copy_(torch.randn(view.shape, generator=generator))
        norm = float(gradient.norm())
        for name, value in plain.items():
            clipped = views[name].double() * min(1.0, 0.5 / norm)
            first[name] = 0.9 * first[name] + 0.1 * clipped
            second[name] = 0.95 * second[name] + 0.05 * clipped**2
            direction = (first[name] / (1 - 0.9**step)) / ((second[name] / (1 - 0.95**step)).sqrt() + 1e-8)
            value -= (0.3 if name.startswith("value_head.") else 0.1) * direction
        for optimizer in optimizers:
            optimizer.update(optimizer.own_parts(["critic"], gradient), {"critic": norm})
    for name, parameter in critic.named_parameters():
        torch.testing.assert_close(parameter.detach().double(), plain[name], rtol=1e-5, atol=1e-6)


def test_moments_in_host_memory_go_through_the_device_in_buckets_with_the_same_bits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(optimizer_module, "_BUCKET_ELEMENTS", 32)
    config = TorchTrainerConfig(learning_rate=0.1, critic_learning_rate=0.2, weight_decay=0.1, max_grad_norm=0.5)
    flats = [FlatParameters(two_modules(), CPU) for _ in range(2)]
    optimizers = [
        holding(ShardedAdamW(dataclasses.replace(config, offload_optimizer=is_offloaded), flat), Interval(16, 96))
        for is_offloaded, flat in zip((False, True), flats, strict=True)
    ]
    held = optimizers[1].moments[0].first
    generator = torch.Generator().manual_seed(1)
    for _ in range(3):
        gradient = torch.randn(96, generator=generator)
        for optimizer in optimizers:
            update([optimizer], gradient.clone())
    assert torch.equal(flats[0].vector, flats[1].vector)
    plain, offloaded = (optimizer.moments[0] for optimizer in optimizers)
    assert torch.equal(plain.first, offloaded.first)
    assert torch.equal(plain.second, offloaded.second)
    assert held.data_ptr() == offloaded.first.data_ptr()
    assert [len(part) for part in optimizers[1].own_parts(["policy"], torch.zeros(64))["policy"]] == [32, 16]


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
    with flat.collecting_gradients("tied") as gradient:
        module.head(module.embedding(torch.tensor([1]))).sum().backward()
    assert flat.views("tied", gradient)["embedding.weight"][:, 0].tolist() == [2.0, 12.0, 2.0, 2.0, 2.0]


@pytest.mark.parametrize("is_reached_twice", [False, True])
def test_gradients_are_added_to_a_sum_on_the_way(is_reached_twice: bool) -> None:
    modules = two_modules()
    flat = FlatParameters(modules, CPU)
    policy, inputs = modules["policy"], torch.arange(5.0)
    with flat.collecting_gradients("policy") as gradient:
        policy(inputs).sum().backward()
    total = torch.ones_like(gradient)
    with flat.adding_gradients("policy", total=total, in_parts=list(policy.parameters()) if is_reached_twice else []):
        for share in (0.25, 0.75) if is_reached_twice else (1.0,):
            (share * policy(inputs).sum()).backward()
    assert torch.equal(total, gradient + 1)
    assert all(parameter.grad is None for parameter in policy.parameters())
    policy(inputs).sum().backward()
    assert torch.equal(total, gradient + 1), "the hooks are gone"


def test_moments_are_rearranged_without_copies_where_nothing_else_of_them_stays() -> None:
    flat = FlatParameters(two_modules(), CPU)
    optimizer = holding(ShardedAdamW(TorchTrainerConfig(), flat), Interval(0, 80))
    (old,) = optimizer.moments
    old.first.copy_(torch.arange(80.0))
    halves = rearranged([old], (Interval(0, 48), Interval(48, 80)), optimizer)
    for each in (halves, compacted(halves)):
        assert [half.first.data_ptr() for half in each] == [old.first.data_ptr(), old.first[48:].data_ptr()]
    (view,) = rearranged(halves, (Interval(16, 32),), optimizer)
    assert view.first.data_ptr() == old.first[16:].data_ptr()
    (left,) = compacted([view])
    assert left.first.tolist() == list(range(16, 32))
    assert left.first.untyped_storage().nbytes() == 16 * 4
    there, new = rearranged([left], (Interval(16, 48),), optimizer)
    assert there.elements == Interval(16, 32)
    assert new.elements == Interval(32, 48)
    assert joined([there, new], Interval(24, 40), "first").tolist() == [*range(24, 32), *[0.0] * 8]
