"""A critic that begins as a reward model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from trainer_samples import random_batch, save_tiny_model
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

from rlserve.errors import ConfigurationError, ModelError
from rlserve.trainers import LoraConfig, PPOConfig, TorchTrainerConfig, create_trainer


def save_reward_model(folder: Path, policy_path: str, *, num_labels: int = 1) -> str:
    """A random classifier of the policy's shape."""
    config = AutoConfig.from_pretrained(policy_path, num_labels=num_labels)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        AutoModelForSequenceClassification.from_config(config, dtype=torch.float32).save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("sharding", ["optimizer", "full"])
@pytest.mark.parametrize("family", ["qwen3", "llama"])
def test_its_values_are_the_scores_of_the_reward_model(sharding: Any, family: str, tmp_path: Path) -> None:
    policy_path = save_tiny_model(tmp_path / "policy", family)
    reward_path = save_reward_model(tmp_path / "reward", policy_path)
    config = TorchTrainerConfig(sharding=sharding, critic_model_path=reward_path, critic_learning_rate=1e-3)
    trainer = create_trainer(config, PPOConfig(), model_path=policy_path, seed=0)
    batch = random_batch(0)
    classifier = AutoModelForSequenceClassification.from_pretrained(reward_path, dtype=torch.float32).eval()
    expected, first = [], 0
    for num_prompt, num_response in zip(batch.prompt_lengths, batch.response_lengths, strict=True):
        end = first + num_prompt + num_response
        input_ids = torch.from_numpy(batch.token_ids[first:end].astype(np.int64))[None]
        with torch.no_grad():
            states = classifier.base_model(input_ids=input_ids).last_hidden_state
            expected.append(classifier.score(states)[0, num_prompt - 1 : -1, 0].numpy())
        first = end
    found = trainer.values(batch)
    np.testing.assert_allclose(found, np.concatenate(expected), atol=1e-4)
    trainer.step(batch)
    assert not np.allclose(trainer.values(batch), found, atol=1e-4), "it is trained"
    policy = AutoModelForCausalLM.from_pretrained(policy_path, dtype=torch.float32)
    name, weight = next(iter(policy.named_parameters()))
    assert torch.allclose(trainer.weights()[name], weight, atol=1e-4), "the policy is the policy's own model"


def test_what_is_no_reward_model_of_the_policys_shape_is_refused(tmp_path: Path) -> None:
    policy_path = save_tiny_model(tmp_path / "policy")

    def start(path: str) -> None:
        create_trainer(TorchTrainerConfig(critic_model_path=path), PPOConfig(), model_path=policy_path, seed=0)

    wider = save_reward_model(tmp_path / "wider", save_tiny_model(tmp_path / "wide", hidden_size=64))
    with pytest.raises(ModelError, match=r"is not of the policy's shape: .* is .*64.* in it"):
        start(wider)
    with pytest.raises(ModelError, match="it has no single label"):
        start(save_reward_model(tmp_path / "two", policy_path, num_labels=2))
    with pytest.raises(ModelError, match=r"it lacks score\.weight"):
        start(policy_path)
    with pytest.raises(ModelError, match="is no reward model that a critic can begin as"):
        start(str(tmp_path / "nowhere"))


def test_with_adapters_policy_and_critic_have_one_base() -> None:
    with pytest.raises(ConfigurationError, match=r"critic_model_path: must be null with lora\.rank"):
        TorchTrainerConfig(critic_model_path="reward", lora=LoraConfig(rank=4))
