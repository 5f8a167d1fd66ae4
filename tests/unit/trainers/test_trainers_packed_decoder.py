"""Decoders over packed samples against transformers' own: states, gradients, whole steps."""

from __future__ import annotations

import copy
import dataclasses
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from instruction_sets import instructions_up_to, only_on_x86
from torch import Tensor
from trainer_samples import FAMILIES, random_batch, save_tiny_model

from rlserve.trainers import Batch, PPOConfig, TorchTrainerConfig, Trainer, create_trainer
from rlserve.trainers.backends.base import PolicyOutputs
from rlserve.trainers.backends.pytorch.models import PolicyLoss, load_policy, policy_backward
from rlserve.trainers.backends.pytorch.native_shape import read_shape
from rlserve.trainers.backends.pytorch.packed.decoder import pack_layers
from rlserve.trainers.backends.pytorch.packed.prefixes import PackedInputs, pack
from rlserve.trainers.backends.pytorch.shards import LogicalShard, cut_into_packed_shards, shard_inputs

DENSE = tuple(family for family in FAMILIES if not family.endswith("moe"))
CPU = torch.device("cpu")


def batch_of_groups(seed: int = 0, num_samples: int = 12, longest: int = 20) -> Batch:
    """Random samples; of every three, the second and third begin as the first does."""
    batch, rng = random_batch(seed, num_samples, longest=longest), np.random.default_rng(seed)
    lengths = batch.prompt_lengths + batch.response_lengths
    starts, token_ids = np.cumsum(lengths) - lengths, batch.token_ids.copy()
    for index in range(num_samples):
        first = index // 3 * 3
        length = min(lengths[first], lengths[index], rng.integers(2, 2 * longest))
        token_ids[starts[index] : starts[index] + length] = token_ids[starts[first] : starts[first] + length]
    return dataclasses.replace(batch, token_ids=token_ids)


def one_shard(batch: Batch) -> LogicalShard:
    (shard,) = cut_into_packed_shards(batch, np.arange(batch.num_samples), 1)
    return shard


def packed(batch: Batch) -> PackedInputs:
    shard = one_shard(batch)
    inputs = pack(batch, shard.samples, shard.num_shared)
    assert len(inputs.input_ids) < 0.8 * int((batch.prompt_lengths + batch.response_lengths).sum()), "none are shared"
    return inputs


def tiny_policy(folder: Path, family: str, **fields: Any) -> Any:
    """Whose norms are not all ones, which would hide mistakes."""
    policy = load_policy(save_tiny_model(folder, family, **fields), load_weights=True)
    generator = torch.Generator().manual_seed(3)
    for parameter in policy.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    return policy


def add_decoder(policy: Any, dtype: Any = "float32") -> Any:
    pack_layers([policy], read_shape(policy), TorchTrainerConfig(dtype=dtype))
    return policy


def backward(policy: Any, inputs: Any) -> tuple[Tensor, dict[str, Tensor]]:
    """Log-probabilities, and the gradients of a sum of them in which all differ."""
    weights = torch.linspace(-1.0, 1.0, len(inputs.targets), dtype=next(policy.parameters()).dtype)

    def loss(rows: slice, outputs: PolicyOutputs) -> Tensor:
        return (outputs.log_probs * weights[rows]).sum()

    for parameter in policy.parameters():
        parameter.grad = None
    outputs = policy_backward(policy, inputs, PolicyLoss(of_rows=loss), temperature=0.7, autocast=nullcontext)
    return outputs.log_probs, {name: parameter.grad for name, parameter in policy.named_parameters()}


def assert_close(
    found: tuple[Tensor, dict[str, Tensor]], expected: tuple[Tensor, dict[str, Tensor]], tolerance: float
) -> None:
    torch.testing.assert_close(found[0].double(), expected[0].double(), atol=2 * tolerance, rtol=tolerance)
    assert found[1].keys() == expected[1].keys()
    for name, gradient in expected[1].items():
        largest = float(gradient.abs().max())
        torch.testing.assert_close(
            found[1][name].double(), gradient.double(), atol=tolerance * largest, rtol=0, msg=name
        )


SIZES: dict[str, dict[str, Any]] = {
    "heads of 8": {},
    "untied": {"tied": False},
    "heads of 40, of which none fills vectors": {"hidden_size": 160},
    "heads of 32": {"hidden_size": 128},
}


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("family", DENSE)
def test_values_and_gradients_are_those_of_float64(family: str, size: str, tmp_path: Path) -> None:
    policy = tiny_policy(tmp_path, family, **SIZES[size])
    oracle = copy.deepcopy(policy).double()
    batch = batch_of_groups()
    shard = one_shard(batch)
    found = backward(add_decoder(policy), packed(batch))
    assert_close(found, backward(oracle, shard_inputs(batch, shard, CPU)), 5e-5)


@pytest.mark.parametrize("family", DENSE)
def test_bfloat16_is_as_near_as_that_of_autocast(family: str, tmp_path: Path) -> None:
    policy = tiny_policy(tmp_path, family)
    oracle, plain = copy.deepcopy(policy).double(), copy.deepcopy(policy)
    batch = batch_of_groups()
    padded = shard_inputs(batch, one_shard(batch), CPU)
    _, expected = backward(oracle, padded)
    _, found = backward(add_decoder(policy, "bfloat16"), packed(batch))
    with torch.autocast("cpu", torch.bfloat16):
        _, by_autocast = backward(plain, padded)

    def error(gradients: dict[str, Tensor]) -> float:
        errors = [(gradients[name] - expected[name]).norm() / expected[name].norm() for name in expected]
        return float(torch.stack(errors).mean())

    assert error(found) < 1.5 * error(by_autocast)


def test_a_token_that_stands_for_padding_teaches_its_embedding_nothing(tmp_path: Path) -> None:
    policy = tiny_policy(tmp_path, "qwen3", tied=False)
    policy.model.embed_tokens.padding_idx = 5
    plain = copy.deepcopy(policy)
    batch = batch_of_groups()
    inputs = packed(batch)
    assert (inputs.input_ids == 5).any()
    found = backward(add_decoder(policy), inputs)
    assert_close(found, backward(plain, shard_inputs(batch, one_shard(batch), CPU)), 2e-5)
    assert not found[1]["model.embed_tokens.weight"][5].any()


@only_on_x86
def test_processors_without_avx512_compute_the_same(tmp_path: Path) -> None:
    policy = add_decoder(tiny_policy(tmp_path, "gemma3"))
    inputs = packed(batch_of_groups())
    newest = backward(policy, inputs)
    with instructions_up_to("avx2"):
        assert_close(backward(policy, inputs), newest, 1e-5)


def make_trainer(path: str, **config: Any) -> Trainer:
    return create_trainer(
        TorchTrainerConfig(learning_rate=1e-3, **config), PPOConfig(kl_coefficient=0.1), model_path=path, seed=0
    )


def test_a_step_is_that_of_the_torch_kernels(tmp_path: Path) -> None:
    path, batch = save_tiny_model(tmp_path), batch_of_groups()
    plain, native = (make_trainer(path, kernels=kernels, num_logical_shards=2) for kernels in ("torch", "native"))
    before = {name: tensor.clone() for name, tensor in plain.weights().items()}
    expected, found = plain.step(batch), native.step(batch)
    for name in ("actor/pg_loss", "critic/vf_loss", "critic/kl", "actor/grad_norm", "critic/grad_norm"):
        assert found[name] == pytest.approx(expected[name], rel=1e-4, abs=1e-6), name
    assert found["perf/padding_share"] == 0.0 < expected["perf/padding_share"]
    for name, tensor in plain.weights().items():
        torch.testing.assert_close(native.weights()[name], tensor, rtol=1e-3, atol=1e-4)
    assert any(not torch.equal(tensor, before[name]) for name, tensor in native.weights().items())
    np.testing.assert_allclose(native.values(batch), plain.values(batch), atol=2e-2)


def test_passes_of_any_size_give_the_same_gradient(tmp_path: Path) -> None:
    path, batch = save_tiny_model(tmp_path), batch_of_groups()
    whole, parts = (make_trainer(path, ppo_max_token_len_per_gpu=most) for most in (16384, 40))
    expected, found = whole.step(batch), parts.step(batch)
    for name in ("actor/pg_loss", "actor/grad_norm", "critic/grad_norm"):
        assert found[name] == pytest.approx(expected[name], rel=1e-5, abs=1e-7), name
