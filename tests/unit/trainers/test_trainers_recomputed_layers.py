"""Activation checkpointing: the same bits, computed twice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from ppo_trainers import assert_same_bits, copy_of, make_trainer
from torch import Tensor
from trainer_samples import FAMILIES, random_batch, save_tiny_model

from rlserve.trainers import LoraConfig, PPOConfig
from rlserve.trainers.backends.pytorch.models import load_policy
from rlserve.trainers.backends.pytorch.recomputed_layers import recompute_layers


def state_after_two_steps(path: str, **config: Any) -> dict[str, Tensor]:
    trainer = make_trainer(path, PPOConfig(kl_coefficient=0.1), num_logical_shards=3, **config)
    for seed in range(2):
        trainer.step(random_batch(seed))
    return copy_of(trainer.state())


@pytest.mark.parametrize(
    "config",
    [{}, {"dtype": "bfloat16"}, {"lora": LoraConfig(rank=2)}, {"deterministic": True}],
    ids=["float32", "bfloat16", "lora", "deterministic"],
)
def test_steps_have_the_same_bits(model_path: str, config: dict[str, Any]) -> None:
    expected = state_after_two_steps(model_path, **config)
    assert_same_bits(state_after_two_steps(model_path, activation_checkpointing=True, **config), expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_gives_the_same_gradients(tmp_path: Path, family: str) -> None:
    token_ids = torch.arange(12).view(2, 6)

    def gradients(*, recomputes: bool) -> dict[str, Tensor]:
        policy = load_policy(save_tiny_model(tmp_path, family), load_weights=True)
        if recomputes:
            recompute_layers(policy)
        policy.base_model(input_ids=token_ids, use_cache=False).last_hidden_state.square().sum().backward()
        return {name: found.grad for name, found in policy.named_parameters() if found.grad is not None}

    expected = gradients(recomputes=False)
    assert len(expected) > 10
    assert_same_bits(gradients(recomputes=True), expected)


def test_a_forward_pass_keeps_the_inputs_of_layers_alone(model_path: str) -> None:
    policy = load_policy(model_path, load_weights=True)
    kept: list[Tensor] = []

    def kept_bytes() -> int:
        kept.clear()
        with torch.autograd.graph.saved_tensors_hooks(lambda saved: kept.append(saved) or saved, lambda saved: saved):
            policy.base_model(input_ids=torch.arange(16)[None], use_cache=False)
        return sum(saved.nbytes for saved in kept)

    before = kept_bytes()
    recompute_layers(policy)
    assert kept_bytes() < before / 4


def test_nothing_is_computed_twice_without_gradients(model_path: str) -> None:
    policy = load_policy(model_path, load_weights=True)
    recompute_layers(policy)
    calls = 0

    def count(*_: Any) -> None:
        nonlocal calls
        calls += 1

    policy.base_model.layers[0].mlp.register_forward_pre_hook(count)
    states = policy.base_model(input_ids=torch.arange(4)[None], use_cache=False).last_hidden_state
    assert calls == 1
    states.sum().backward()
    assert calls == 2
    with torch.no_grad():
        policy.base_model(input_ids=torch.arange(4)[None], use_cache=False)
    assert calls == 3
