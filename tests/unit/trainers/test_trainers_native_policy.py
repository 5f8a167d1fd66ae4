"""The policy computed by the engine's kernels: its values and gradients against PyTorch, and what it refuses."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from trainer_samples import FAMILIES, VOCABULARY, random_batch, save_tiny_model

from rlserve.errors import ConfigurationError, UserError
from rlserve.native.library import NativeBuildError
from rlserve.trainers import PPOConfig, TorchTrainerConfig, create_trainer
from rlserve.trainers.backends.base import PolicyOutputs
from rlserve.trainers.backends.pytorch import native_policy, native_shape
from rlserve.trainers.backends.pytorch.models import PolicyLoss, load_policy, policy_backward, policy_outputs
from rlserve.trainers.backends.pytorch.native_policy import NativePolicy
from rlserve.trainers.backends.pytorch.shards import ShardInputs, cut_into_shards, shard_inputs

DENSE = tuple(family for family in FAMILIES if not family.endswith("moe"))


def outputs_after_backward(policy: Any, inputs: ShardInputs, weights: Tensor, **options: Any) -> PolicyOutputs:
    """With the gradient of the weighted sum of log-probabilities added to the policy's parameters."""

    def loss(rows: slice, outputs: PolicyOutputs) -> Tensor:
        return (outputs.log_probs * weights[rows]).sum()

    return policy_backward(policy, inputs, PolicyLoss(of_rows=loss), autocast=nullcontext, **options)


def plain_log_probs(policy: Any, inputs: ShardInputs, temperature: float) -> Tensor:
    logits = policy(inputs.input_ids, use_cache=False).logits.flatten(0, 1)[inputs.states] / temperature
    return logits.log_softmax(-1).gather(-1, inputs.targets[:, None]).squeeze(-1)


def inputs_of_one_shard(longest: int = 12) -> ShardInputs:
    batch = random_batch(0, longest=longest)
    (shard,) = cut_into_shards(batch, np.arange(batch.num_samples), 1)
    return shard_inputs(batch, shard, torch.device("cpu"))


@pytest.mark.parametrize("family", DENSE)
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_values_and_gradients_are_those_of_float64(family: str, temperature: float, tmp_path: Path) -> None:
    policy = load_policy(save_tiny_model(tmp_path, family), load_weights=True)
    oracle = load_policy(str(tmp_path), load_weights=True).double()
    inputs = inputs_of_one_shard()
    weights = torch.linspace(-1.0, 1.0, len(inputs.targets))

    native = NativePolicy(policy, longest=inputs.input_ids.shape[1])
    found = outputs_after_backward(policy, inputs, weights, temperature=temperature, native=native)
    expected = plain_log_probs(oracle, inputs, temperature)
    (expected * weights).sum().backward()
    raw = plain_log_probs(oracle, inputs, 1.0)

    assert torch.allclose(found.log_probs, expected.float(), atol=2e-5)
    assert torch.allclose(found.raw_log_probs, raw.float(), atol=2e-5)
    for (name, parameter), wanted in zip(policy.named_parameters(), oracle.parameters(), strict=True):
        largest = wanted.grad.abs().max()
        assert torch.allclose(parameter.grad.double(), wanted.grad, rtol=1e-5, atol=1e-5 * float(largest)), name


def test_values_are_the_kernels_and_not_those_of_torch(tmp_path: Path) -> None:
    policy = load_policy(save_tiny_model(tmp_path), load_weights=True)
    inputs = inputs_of_one_shard()
    native = NativePolicy(policy, longest=inputs.input_ids.shape[1])

    outputs = policy_outputs(policy, inputs, temperature=0.7, native=native)
    log_probs, raw = outputs.log_probs, outputs.raw_log_probs
    weights = torch.ones(len(inputs.targets))
    outputs = outputs_after_backward(policy, inputs, weights, temperature=0.7, native=native)

    assert torch.equal(outputs.log_probs, log_probs)
    assert torch.equal(outputs.raw_log_probs, raw)
    assert not torch.equal(policy_outputs(policy, inputs, temperature=0.7).log_probs, log_probs)


def test_logits_in_parts_change_no_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = load_policy(save_tiny_model(tmp_path, "gemma2"), load_weights=True)
    inputs = inputs_of_one_shard()
    whole = NativePolicy(policy, longest=inputs.input_ids.shape[1]).log_probs(inputs, 0.7)
    monkeypatch.setattr(native_policy, "_NUM_LOGITS", 2 * VOCABULARY)
    parts = NativePolicy(policy, longest=inputs.input_ids.shape[1]).log_probs(inputs, 0.7)
    assert torch.equal(parts[0], whole[0])
    assert torch.equal(parts[1], whole[1])


def test_short_samples_beside_a_long_one_have_room(tmp_path: Path) -> None:
    """Each takes whole blocks, so there are fewer together than their tokens alone would let one think."""
    policy = load_policy(save_tiny_model(tmp_path), load_weights=True)
    batch = random_batch(3, num_samples=400, longest=9)
    (shard,) = cut_into_shards(batch, np.arange(400), 1)
    inputs = shard_inputs(batch, shard, torch.device("cpu"))
    assert inputs.input_ids.shape[1] == 17, "one token more than a block"
    native = NativePolicy(policy, longest=128)
    for cached in native._cached:
        cached.fill_(torch.nan)
    guarded = [torch.cat([cached, torch.full_like(cached, 7.0)]) for cached in native._cached]
    native._cache.keys, native._cache.values = (each.data_ptr() for each in guarded[:2])

    found, _ = native.log_probs(inputs, 1.0)

    assert all(bool((each[len(each) // 2 :] == 7.0).all()) for each in guarded), "written past the cache"
    alone = NativePolicy(policy, longest=17)
    assert torch.equal(found, alone.log_probs(inputs, 1.0)[0])


def test_samples_in_several_parts_give_the_same_bits(tmp_path: Path) -> None:
    policy = load_policy(save_tiny_model(tmp_path), load_weights=True)
    batch = random_batch(3, num_samples=60, longest=60)
    whole = cut_into_shards(batch, np.arange(60), 1)
    assert shard_inputs(batch, whole[0], torch.device("cpu")).input_ids.numel() > 3 * 1024
    longest = int((batch.prompt_lengths + batch.response_lengths).max())
    native = NativePolicy(policy, longest=longest)

    def by_token(num_shards: int) -> torch.Tensor:
        found = torch.empty(batch.num_response_tokens)
        for shard in cut_into_shards(batch, np.arange(60), num_shards):
            inputs = shard_inputs(batch, shard, torch.device("cpu"))
            found[torch.from_numpy(shard.tokens)] = native.log_probs(inputs, 1.0)[0]
        return found

    assert torch.equal(by_token(1), by_token(60))


def test_a_model_with_experts_is_refused(tmp_path: Path) -> None:
    path = save_tiny_model(tmp_path, "qwen3_moe")
    with pytest.raises(UserError, match=r"trainer\.deterministic=true is only for models without experts"):
        create_trainer(TorchTrainerConfig(deterministic=True), PPOConfig(), model_path=path, seed=0)


def test_a_rotation_that_hangs_on_the_length_is_refused(tmp_path: Path) -> None:
    factors = {"short_factor": [1.0] * 4, "long_factor": [4.0] * 4, "original_max_position_embeddings": 64}
    path = save_tiny_model(tmp_path, rope_parameters={"rope_type": "longrope", "rope_theta": 1e4, **factors})
    with pytest.raises(UserError, match=r"trainer\.deterministic=true is not for models with rope type 'longrope'"):
        create_trainer(TorchTrainerConfig(deterministic=True), PPOConfig(), model_path=path, seed=0)


def test_another_type_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="deterministic: needs dtype=float32"):
        TorchTrainerConfig(deterministic=True, dtype="bfloat16")


def test_a_machine_without_a_compiler_is_told_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise NativeBuildError("no compiler")

    monkeypatch.setattr(native_shape, "load_library", fail)
    path = save_tiny_model(tmp_path)
    with pytest.raises(UserError, match=r"trainer\.deterministic=true needs the compiled CPU kernels: no compiler"):
        create_trainer(TorchTrainerConfig(deterministic=True), PPOConfig(), model_path=path, seed=0)
