"""PPO's first update in plain PyTorch, for comparison."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AutoModel, AutoModelForCausalLM

from rlserve.trainers import Batch, PPOConfig, Trainer


class PlainPPO:
    """Written out: float64, one sample at a time, one autograd graph over the whole batch. The critic is a network of
    its own where the trainer has one, else a head on the policy."""

    def __init__(self, model_path: str, trainer: Trainer, algorithm: PPOConfig, temperature: float) -> None:
        self.algorithm = algorithm
        self.temperature = temperature
        self.policy = AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.float64).eval()
        self.reference = AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.float64).eval()
        self.head = torch.nn.Linear(self.policy.config.hidden_size, 1, dtype=torch.float64)
        self._modules: dict[str, Any] = {"policy.": self.policy, "critic.value_head.": self.head}
        """What is trained, by the prefix of its names."""
        self.trunk = self.policy.base_model
        saved = trainer.state()
        if any(name.startswith("critic.backbone.") for name in saved):
            self.trunk = AutoModel.from_pretrained(model_path, dtype=torch.float64).eval()
            self._modules["critic.backbone."] = self.trunk
        for prefix, module in self._modules.items():
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
        return {
            prefix + name: parameter.grad
            for prefix, module in self._modules.items()
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
                "values": self.head(self.trunk(tokens[None]).last_hidden_state[0, prompt - 1 : -1])[:, 0],
                "behaviour": torch.from_numpy(behaviour.astype(np.float64)),
                "reward": float(batch.rewards[index]),
            }
