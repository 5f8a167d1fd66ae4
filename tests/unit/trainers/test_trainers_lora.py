"""Adapters: peft's own gradients, one frozen base for all networks, and a state that holds nothing else."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import AutoPeftModelForCausalLM, PeftModel, get_peft_model
from peft import LoraConfig as PeftLoraConfig
from safetensors.torch import load_file
from thread_ranks import on_ranks
from trainer_samples import random_batch, save_tiny_model
from transformers import AutoModelForCausalLM

from rlserve.errors import ConfigurationError, UserError
from rlserve.trainers import Batch, GRPOConfig, LoraConfig, Membership, PPOConfig, TorchTrainerConfig, create_trainer
from rlserve.trainers.algorithms.config import AlgorithmConfig
from rlserve.trainers.backends.base import Wanted
from rlserve.trainers.backends.pytorch.models import PolicyLoss, policy_backward
from rlserve.trainers.backends.pytorch.resharding import reshard
from rlserve.trainers.elastic.base import Group

LORA = LoraConfig(rank=4, alpha=8.0)
PREFIX = "base_model.model."


def new_trainer(
    path: str, algorithm: AlgorithmConfig | None = None, *, load_weights: bool = True, **settings: Any
) -> Any:
    config = TorchTrainerConfig(lora=LORA, learning_rate=0.01, critic_learning_rate=0.01, **settings)
    return create_trainer(config, algorithm or PPOConfig(), model_path=path, seed=3, load_weights=load_weights)


def trained(path: str, *, num_steps: int = 2, **settings: Any) -> Any:
    trainer = new_trainer(path, **settings)
    for step in range(num_steps):
        trainer.step(random_batch(step))
    return trainer


def peft_log_probs(model: Any, batch: Batch) -> torch.Tensor:
    """[A] one sample at a time."""
    found, start = [], 0
    for prompt, response in zip(batch.prompt_lengths, batch.response_lengths, strict=True):
        tokens = torch.from_numpy(batch.token_ids[start : start + prompt + response].astype(np.int64))
        start += prompt + response
        log_probs = model(tokens[None]).logits[0].log_softmax(-1)
        found.append(log_probs[prompt - 1 : -1].gather(-1, tokens[prompt:, None])[:, 0])
    return torch.cat(found)


def own_peft_model(path: str, weights: dict[str, torch.Tensor]) -> PeftModel:
    """The same adapters in a model that peft wraps itself."""
    config = PeftLoraConfig(r=4, lora_alpha=8, target_modules=list(LORA.target_modules), task_type="CAUSAL_LM")
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32), config).eval()
    named = {name.replace(".weight", ".default.weight"): tensor for name, tensor in weights.items()}
    assert not model.load_state_dict(named, strict=False).unexpected_keys
    return model


def test_before_the_first_step_adapters_change_nothing(tmp_path: Path) -> None:
    path, batch = save_tiny_model(tmp_path), random_batch(0)
    plain = create_trainer(TorchTrainerConfig(kernels="torch"), PPOConfig(), model_path=path, seed=3)
    adapted = new_trainer(path)
    np.testing.assert_array_equal(adapted.log_probs(batch), plain.log_probs(batch))
    np.testing.assert_array_equal(adapted.values(batch), plain.values(batch))


def test_the_gradient_of_the_adapters_is_that_of_peft(tmp_path: Path) -> None:
    path, batch = save_tiny_model(tmp_path), random_batch(5)
    trainer = trained(path, num_logical_shards=3)
    weights = {name: tensor.clone() for name, tensor in trainer.weights().items()}
    model, backend = own_peft_model(path, weights), trainer._backend
    np.testing.assert_allclose(trainer.log_probs(batch), peft_log_probs(model, batch).detach().numpy(), atol=2e-6)

    token_weights = torch.from_numpy(np.random.default_rng(0).normal(size=batch.num_response_tokens).astype(np.float32))
    (peft_log_probs(model, batch) * token_weights).sum().backward()
    peft_own = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.requires_grad}

    gradient = gradient_of(backend, batch, token_weights)
    assert len(gradient) == len(peft_own) == 2 * 7 * 2
    for name, found in gradient.items():
        torch.testing.assert_close(found, peft_own[f"{PREFIX}{name}"], atol=2e-5, rtol=1e-4)


def gradient_of(backend: Any, batch: Batch, token_weights: torch.Tensor) -> dict[str, torch.Tensor]:
    """Of the weighted sum of all log-probabilities, by the policy's parameters."""
    flat, runner = backend._state.flat, backend._runner()
    with flat.collecting_gradients("policy") as gradient:
        for shard in runner.cut(batch, np.arange(batch.num_samples)):
            weights = token_weights[shard.tokens]
            policy_backward(
                backend._state.policy,
                runner.inputs(batch, shard),
                PolicyLoss(of_rows=lambda rows, outputs, weights=weights: (outputs.log_probs * weights[rows]).sum()),
                temperature=1.0,
                autocast=runner.autocast,
            )
    return {name: place.view(gradient) for name, place in flat.named_places("policy")}


def test_networks_share_the_frozen_base_which_is_no_state(tmp_path: Path) -> None:
    path = save_tiny_model(tmp_path)
    trainer = trained(path, algorithm=PPOConfig(kl_coefficient=0.1))
    state, before = trainer._backend._state, load_file(f"{path}/model.safetensors")
    embeddings = {id(network.get_input_embeddings().weight) for network in (state.policy, state.reference)}
    assert embeddings == {id(state.critic.backbone.get_input_embeddings().weight)}
    assert not any(parameter.requires_grad for parameter in state.reference.parameters())
    for name, parameter in state.reference.named_parameters():
        assert torch.equal(parameter, before[name]), name
    assert all("lora_" in name or "value_head" in name or name == "counters" for name in trainer.state())
    assert any(name.startswith("critic.backbone.") for name in trainer.state())


def test_the_reference_is_the_model_without_adapters(tmp_path: Path) -> None:
    path, batch = save_tiny_model(tmp_path), random_batch(9)
    plain = create_trainer(TorchTrainerConfig(kernels="torch"), PPOConfig(), model_path=path, seed=3)
    first = plain.log_probs(batch)
    trainer = trained(path, algorithm=PPOConfig(kl_coefficient=0.1))
    scores = trainer._backend.score(batch, Wanted(policy=True, reference=True))
    np.testing.assert_array_equal(scores.reference_log_probs, first)
    assert np.abs(scores.log_probs - first).max() > 1e-3


@pytest.mark.parametrize("algorithm", [PPOConfig(), GRPOConfig()])
def test_a_saved_state_restores_all_bits_over_the_base(tmp_path: Path, algorithm: AlgorithmConfig) -> None:
    path, folder = save_tiny_model(tmp_path), tmp_path / "saved"
    trainer = trained(path, algorithm=algorithm)
    trainer.copy_state().write(folder / "trainer", policy_folder=folder / "policy")
    restored = new_trainer(path, algorithm, load_weights=False)
    restored.load_files(folder / "trainer")
    batch = random_batch(7)
    np.testing.assert_array_equal(restored.log_probs(batch), trainer.log_probs(batch))
    assert all(torch.equal(tensor, trainer.state()[name]) for name, tensor in restored.state().items())


def test_one_and_two_ranks_and_a_newcomer_have_the_same_bits(tmp_path: Path) -> None:
    path = save_tiny_model(tmp_path)
    alone = trained(path, num_steps=3, num_logical_shards=4)
    newcomer = weights_of_newcomer(path)
    assert all(torch.equal(tensor, newcomer[name]) for name, tensor in alone.weights().items())


def weights_of_newcomer(path: str) -> dict[str, torch.Tensor]:
    """A rank trains one step; another joins, and both train two more: the weights of the newcomer."""
    trainers = [new_trainer(path, num_logical_shards=4, load_weights=rank == 0) for rank in range(2)]
    trainers[0].step(random_batch(0))

    def work(group: Group) -> dict[str, torch.Tensor]:
        trainer = trainers[group.rank]
        trainer._backend._group = group
        place = Membership(rank=group.rank, num_ranks=2, host="", port=0, secret="", generation=1)
        reshard(trainer._backend._state, group, place)
        for step in (1, 2):
            trainer.step(random_batch(step))
        return dict(trainer.weights())

    return on_ranks(2, work)[1]


def test_a_saved_policy_is_a_folder_that_peft_loads(tmp_path: Path) -> None:
    path, folder, batch = save_tiny_model(tmp_path / "base"), tmp_path / "policy", random_batch(4)
    trainer = trained(path)
    trainer.save_pretrained(folder)
    loaded = AutoPeftModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        np.testing.assert_allclose(trainer.log_probs(batch), peft_log_probs(loaded, batch).numpy(), atol=2e-6)
    assert set(load_file(folder / "adapter_model.safetensors")) == set(trainer.weights())


def test_peft_is_imported_only_where_adapters_are_trained(tmp_path: Path) -> None:
    program = (
        "import sys\n"
        "from rlserve.trainers import PPOConfig, TorchTrainerConfig, create_trainer\n"
        "import rlserve.engine.core.engine, rlserve.weights.contents.factory\n"
        f"create_trainer(TorchTrainerConfig(), PPOConfig(), model_path={save_tiny_model(tmp_path)!r}, seed=0)\n"
        "assert 'peft' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)


@pytest.mark.parametrize(("family", "targets", "match"), [
    ("qwen3_moe", ("q_proj",), "only for models without experts"),
    ("qwen3", ("q_proj", "query"), "names 'query', and this model's linear layers are down_proj, gate_proj"),
    ("qwen3", ("lm_head",), "names 'lm_head'"),
])  # fmt: skip
def test_a_model_that_cannot_have_these_adapters_is_refused(
    tmp_path: Path, family: str, targets: Sequence[str], match: str
) -> None:
    config = TorchTrainerConfig(lora=LoraConfig(rank=4, target_modules=tuple(targets)))
    with pytest.raises(UserError, match=match):
        create_trainer(config, PPOConfig(), model_path=save_tiny_model(tmp_path, family), seed=0)


def test_settings_that_cannot_be_are_refused() -> None:
    for settings in ({"rank": -1}, {"rank": 1, "alpha": 0.0}, {"target_modules": ()}):
        with pytest.raises(ConfigurationError):
            LoraConfig(**settings)  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match=r"deterministic: needs lora.rank=0"):
        TorchTrainerConfig(lora=LORA, deterministic=True)
    assert not TorchTrainerConfig().lora.is_on
