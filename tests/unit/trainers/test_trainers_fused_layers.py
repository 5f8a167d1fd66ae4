"""Fused layers against transformers' own, on the GPU if there is one, else in Triton's interpreter."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from trainer_samples import FAMILIES, random_batch, save_tiny_model
from transformers import AutoModelForCausalLM

from rlserve.trainers import PPOConfig, TorchTrainerConfig, Trainer, create_trainer
from rlserve.trainers.backends.config import LoraConfig

functions = pytest.importorskip(
    "rlserve.trainers.backends.pytorch.fused.functions", reason="needs Triton: pip install 'rlserve[gpu]'"
)
layers = pytest.importorskip("rlserve.trainers.backends.pytorch.fused.layers")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that programs have several tiles each, the last of them not full."""
    monkeypatch.setattr(functions, "_TILE_ELEMENTS", 64)
    monkeypatch.setattr(functions, "_MOST_PROGRAMS", 3)
    monkeypatch.setattr(functions, "_ACTIVATION_BLOCK", 64)


def outputs_and_gradients(model: Any, input_ids: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Last hidden states, and the gradient of a loss in which all of them differ."""
    hidden = model.base_model(input_ids=input_ids, use_cache=False).last_hidden_state
    weights = torch.randn(hidden.shape, generator=torch.Generator().manual_seed(1)).to(hidden.device)
    (hidden * weights).sum().backward()
    return hidden.detach(), {
        name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None
    }


def fused_classes(model: nn.Module) -> set[str]:
    return {type(module).__name__ for module in model.modules() if type(module).__name__.startswith("Fused")}


@pytest.mark.parametrize("family", FAMILIES)
def test_hidden_states_and_gradients_are_those_of_transformers(tmp_path: Path, family: str) -> None:
    path = save_tiny_model(tmp_path, family)
    expected_model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval().to(DEVICE)
    for parameter in expected_model.parameters():  # norms begin as ones or zeros, which hides mistakes
        parameter.data += 0.1 * torch.randn_like(parameter)
    found_model = copy.deepcopy(expected_model)
    layers.fuse_layers(found_model, torch.float32)
    input_ids = torch.randint(0, 32, (3, 7), generator=torch.Generator().manual_seed(0)).to(DEVICE)
    expected, expected_gradients = outputs_and_gradients(expected_model, input_ids)
    found, found_gradients = outputs_and_gradients(found_model, input_ids)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert found_gradients.keys() == expected_gradients.keys()
    for name, gradient in expected_gradients.items():
        torch.testing.assert_close(found_gradients[name], gradient, rtol=1e-3, atol=1e-4, msg=name)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_has_what_it_can_have(tmp_path: Path, family: str) -> None:
    model = AutoModelForCausalLM.from_pretrained(save_tiny_model(tmp_path, family), dtype=torch.float32)
    layers.fuse_layers(model, torch.float32)
    expected = {"FusedNorm", "FusedAttention", "FusedGatedLayer", "FusedDecoderLayer"}
    if family.startswith("gemma"):
        expected -= {"FusedAttention", "FusedDecoderLayer"}
    if family == "qwen3_moe":  # all of its layers have experts
        expected -= {"FusedGatedLayer"}
    assert fused_classes(model) == expected


def make_trainer(path: str, **config: Any) -> Trainer:
    return create_trainer(
        TorchTrainerConfig(num_logical_shards=2, learning_rate=1e-3, **config),
        PPOConfig(kl_coefficient=0.1),
        model_path=path,
        seed=0,
        device=DEVICE,
    )


@pytest.mark.parametrize("lora", [LoraConfig(), LoraConfig(rank=2)], ids=["all weights", "lora"])
def test_a_step_is_that_of_the_torch_kernels(tmp_path: Path, lora: LoraConfig) -> None:
    path, batch = save_tiny_model(tmp_path), random_batch(0, num_samples=2)
    plain, fused = (make_trainer(path, kernels=kernels, lora=lora) for kernels in ("torch", "triton"))
    before = {name: tensor.clone() for name, tensor in plain.weights().items()}
    expected, found = plain.step(batch), fused.step(batch)
    for name in ("actor/pg_loss", "critic/vf_loss", "actor/entropy", "actor/grad_norm", "critic/grad_norm"):
        assert found[name] == pytest.approx(expected[name], rel=1e-3, abs=1e-5), name
    for name, tensor in plain.weights().items():
        torch.testing.assert_close(fused.weights()[name], tensor, rtol=1e-3, atol=1e-4)
    assert any(not torch.equal(tensor, before[name]) for name, tensor in fused.weights().items())


def test_only_the_networks_of_their_trainer_are_fused(tmp_path: Path) -> None:
    path, batch = save_tiny_model(tmp_path), random_batch(0, num_samples=2)
    plain = make_trainer(path, kernels="torch")
    expected = plain.log_probs(batch)
    fused = make_trainer(path, kernels="triton")
    fused.log_probs(batch)
    assert (plain.log_probs(batch) == expected).all()
    networks = [trainer._backend._held_state().networks() for trainer in (plain, fused)]  # type: ignore[attr-defined]
    assert [len(fused_classes(network)) for network in (*networks[0], *networks[1])] == [0, 0, 0, 4, 4, 4]
