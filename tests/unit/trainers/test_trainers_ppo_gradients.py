"""The gradients of PPO's first update, against a plain reference."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from ppo_trainers import make_trainer
from torch import Tensor
from trainer_samples import random_batch, save_tiny_model
from transformers import AutoModel, AutoModelForCausalLM

from rlserve.trainers import Batch, PPOConfig, Trainer


class PlainPPO:
    """PPO's first update written out: float64, one sample at a time, one autograd graph over the whole batch."""

    def __init__(self, model_path: str, trainer: Trainer, algorithm: PPOConfig, temperature: float) -> None:
        self.algorithm = algorithm
        self.temperature = temperature
        self.policy = AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.float64).eval()
        self.reference = AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.float64).eval()
        self.critic = AutoModel.from_pretrained(model_path, dtype=torch.float64).eval()
        self.head = torch.nn.Linear(self.critic.config.hidden_size, 1, dtype=torch.float64)
        self._copy(self.policy, trainer.weights())
        saved = trainer.state()
        for module, prefix in ((self.critic, "critic.backbone."), (self.head, "critic.value_head.")):
            self._copy(module, {n.removeprefix(prefix): t for n, t in saved.items() if n.startswith(prefix)})

    @staticmethod
    def _copy(module: torch.nn.Module, tensors: Mapping[str, Tensor]) -> None:
        with torch.no_grad():
            for name, parameter in module.named_parameters():
                parameter.copy_(tensors[name])

    def gradients(self, batch: Batch) -> dict[str, Tensor]:
        """Of ``policy loss + coefficient * value loss``, under the trainer's names."""
        algorithm = self.algorithm
        samples = list(self._samples(batch))
        advantages, losses = [], []
        for sample in samples:
            running, values = 0.0, [*sample["values"].tolist(), 0.0]
            estimates = []
            for t in reversed(range(len(sample["log_probs"]))):
                reward = -algorithm.kl_coefficient * (sample["log_probs"][t] - sample["reference"][t]).item()
                reward += sample["reward"] if t == len(sample["log_probs"]) - 1 else 0.0
                delta = reward + algorithm.gamma * values[t + 1] - values[t]
                running = delta + algorithm.gamma * algorithm.gae_lambda * running
                estimates.insert(0, running)
            advantages.append(torch.tensor(estimates, dtype=torch.float64))
        all_advantages = torch.cat(advantages)
        mean, deviation = all_advantages.mean(), all_advantages.std(unbiased=False)
        for sample, estimates in zip(samples, advantages, strict=True):
            log_probs, values = sample["log_probs"], sample["values"]
            weights = (
                (log_probs.detach() - sample["behaviour"])
                .exp()
                .clamp(max=algorithm.rollout_correction.rollout_is_threshold)
            )
            ratios = (log_probs - log_probs.detach()).exp()
            policy_loss = -weights * ratios * (estimates - mean) / deviation
            value_loss = 0.5 * (values - (estimates + values.detach())) ** 2
            loss = policy_loss + algorithm.value_coefficient * value_loss
            losses.append(loss - algorithm.entropy_coefficient * sample["entropies"])
        torch.cat(losses).mean().backward()
        modules = {"policy.": self.policy, "critic.backbone.": self.critic, "critic.value_head.": self.head}
        return {
            prefix + name: parameter.grad
            for prefix, module in modules.items()
            for name, parameter in module.named_parameters()
        }

    def _samples(self, batch: Batch):
        token_start = response_start = 0
        for index, (prompt, response) in enumerate(zip(batch.prompt_lengths, batch.response_lengths, strict=True)):
            tokens = torch.from_numpy(batch.token_ids[token_start : token_start + prompt + response].astype(np.int64))
            behaviour = batch.behaviour_log_probs[response_start : response_start + response]
            token_start, response_start = token_start + prompt + response, response_start + response
            policy, reference = (
                (model(tokens[None]).logits[0, prompt - 1 : -1] / self.temperature).log_softmax(-1)
                for model in (self.policy, self.reference)
            )
            targets = tokens[prompt:, None]
            yield {
                "log_probs": policy.gather(-1, targets)[:, 0],
                "reference": reference.gather(-1, targets)[:, 0],
                "entropies": -(policy.exp() * policy).sum(-1),
                "values": self.head(self.critic(tokens[None]).last_hidden_state[0, prompt - 1 : -1])[:, 0],
                "behaviour": torch.from_numpy(behaviour.astype(np.float64)),
                "reward": float(batch.rewards[index]),
            }


@pytest.mark.parametrize(
    ("algorithm", "temperature"),
    [
        (PPOConfig(), 1.0),
        (PPOConfig(kl_coefficient=0.3, entropy_coefficient=0.02, gamma=0.9, gae_lambda=0.8), 1.0),
        (PPOConfig(kl_coefficient=0.1, entropy_coefficient=0.1, value_coefficient=2.0), 0.7),
    ],
    ids=["default", "kl-entropy", "temperature"],
)
def test_gradients_equal_a_plain_reference(tmp_path: Path, algorithm: PPOConfig, temperature: float) -> None:
    # Weights of an ordinary size: with the large ones of the other tests, float32 rounding alone comes to 1e-6.
    model_path = save_tiny_model(tmp_path, initializer_range=0.05)
    # With beta1 = 0 the first moment is the gradient itself, and nothing is clipped.
    trainer = make_trainer(model_path, algorithm, temperature, adam_beta1=0.0, max_grad_norm=1e9)
    trainer.step(random_batch(3))  # moves policy and critic away from where they began
    batch = random_batch(4)
    expected = PlainPPO(model_path, trainer, algorithm, temperature).gradients(batch)
    trainer.step(batch)
    state = trainer.state()
    for network in ("policy.", "critic."):
        names = [name for name in expected if name.startswith(network)]
        ours = torch.cat([state[f"first_moment.{name}"].flatten().double() for name in names])
        plain = torch.cat([expected[name].flatten() for name in names])
        assert float((ours - plain).norm() / plain.norm()) < 1e-6
