"""Configuration of the trainers. Imports no torch, so that the command line stays quick."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from rlserve.errors import check_fields

SAME_BITS_BLOCK_SIZES = (16, 32, 64, 128)
"""``block_size`` of engines that give the log-probabilities of a deterministic trainer, bit for bit: with all of these
attention adds up a row in one and the same order."""


@dataclass(frozen=True, kw_only=True)
class AlgorithmConfig:
    """PPO with a critic (Schulman et al. 2017, arXiv 1707.06347)."""

    name: Literal["ppo"] = "ppo"
    """The algorithm."""
    num_epochs: int = 1
    """Passes over the samples of a step."""
    num_mini_batches: int = 1
    """Optimizer steps in a pass."""
    clip_ratio: float = 0.2
    """Half-width of the interval that the probability ratio is clipped to (equation 7)."""
    value_clip: float = 0.2
    """Half-width of the interval around the old value that the new value is clipped to."""
    gamma: float = 1.0
    """Discount per token."""
    gae_lambda: float = 0.95
    """Lambda of generalised advantage estimation (arXiv 1506.02438, equation 16)."""
    kl_coefficient: float = 0.0
    """Weight of the per-token KL penalty to the frozen reference, subtracted from the reward; 0 keeps no reference."""
    entropy_coefficient: float = 0.0
    """Weight of the policy's entropy, subtracted from the loss."""
    value_coefficient: float = 0.5
    """Weight of the value loss."""
    importance_sampling_cap: float = 2.0
    """Cap of the truncated importance weight that corrects the engine's log-probabilities to the trainer's."""
    bound_whitening: bool = True
    """Whitened advantages have standard deviation 1, or less where the rewards that follow the tokens spread less than
    the advantages do: then most of the advantages is the critic's error. Where all rewards are alike the policy stays
    as it is. False whitens to 1 always, as TRL and verl do."""
    bootstrap_truncated: bool = False
    """Count the critic's value of the state after the last token of an answer that was cut by a limit of length. False
    takes every answer's end for the end of the episode, as TRL and verl do."""

    def __post_init__(self) -> None:
        check_fields(
            self,
            {
                "num_epochs": self.num_epochs >= 1 or "must be at least 1",
                "num_mini_batches": self.num_mini_batches >= 1 or "must be at least 1",
                "clip_ratio": self.clip_ratio > 0 or "must be above 0",
                "value_clip": self.value_clip > 0 or "must be above 0",
                "gamma": 0 <= self.gamma <= 1 or "must be between 0 and 1",
                "gae_lambda": 0 <= self.gae_lambda <= 1 or "must be between 0 and 1",
                "kl_coefficient": self.kl_coefficient >= 0 or "must be at least 0",
                "entropy_coefficient": self.entropy_coefficient >= 0 or "must be at least 0",
                "value_coefficient": self.value_coefficient > 0 or "must be above 0",
                "importance_sampling_cap": self.importance_sampling_cap >= 1 or "must be at least 1",
            },
        )


@dataclass(frozen=True, kw_only=True)
class TrainerConfig:
    """Optimizer, precision and the data-parallel backend."""

    backend: Literal["torch"] = "torch"
    """What computes: plain PyTorch."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type that the forward and backward passes compute in; master weights are always float32."""
    deterministic: bool = False
    """Compute the policy with the engine's own kernels, so that its log-probabilities are those of an engine on the CPU
    in float32, bit for bit; gradients are PyTorch's. Needs the CPU, dtype float32 and a model without experts."""
    learning_rate: float = 1e-6
    """Of the policy."""
    critic_learning_rate: float = 5e-6
    """Of the critic."""
    num_warmup_steps: int = 0
    """Optimizer steps over which the learning rates rise linearly to their value."""
    weight_decay: float = 0.0
    """Decoupled weight decay of AdamW, policy and critic."""
    decay_norms_and_biases: bool = False
    """Let weight decay act on norms and biases too, as plain AdamW does; False as the Trainer of transformers."""
    adam_beta1: float = 0.9
    """Decay of the mean of the gradients in AdamW."""
    adam_beta2: float = 0.95
    """Decay of the mean of their squares."""
    max_grad_norm: float = 1.0
    """Norm that the gradients of policy and critic are each clipped to."""
    num_logical_shards: int = 12
    """Parts that every mini-batch is cut into, whatever the number of ranks: gradients are summed over them in a
    fixed tree, so the trajectory does not depend on how many ranks compute it. A rank computes one shard at a time."""
    ppo_max_token_len_per_gpu: int = 16384
    """Most tokens, padding included, that go through a network at once. A logical shard of more is computed in several
    passes, cut between samples; less takes less memory. One sample always fits."""
    timeout_s: float = 120.0
    """Deadline of every collective operation, and of forming a group."""
    step_timeout_s: float = 3600.0
    """Deadline of one whole training step."""

    def __post_init__(self) -> None:
        check_fields(
            self,
            {
                "deterministic": not (self.deterministic and self.dtype != "float32") or "needs dtype=float32",
                "learning_rate": self.learning_rate > 0 or "must be above 0",
                "critic_learning_rate": self.critic_learning_rate > 0 or "must be above 0",
                "num_warmup_steps": self.num_warmup_steps >= 0 or "must be at least 0",
                "weight_decay": self.weight_decay >= 0 or "must be at least 0",
                "adam_beta1": 0 <= self.adam_beta1 < 1 or "must be in [0, 1)",
                "adam_beta2": 0 <= self.adam_beta2 < 1 or "must be in [0, 1)",
                "max_grad_norm": self.max_grad_norm > 0 or "must be above 0",
                "num_logical_shards": self.num_logical_shards >= 1 or "must be at least 1",
                "ppo_max_token_len_per_gpu": self.ppo_max_token_len_per_gpu >= 1 or "must be at least 1",
                "timeout_s": self.timeout_s > 0 or "must be above 0",
                "step_timeout_s": self.step_timeout_s > 0 or "must be above 0",
            },
        )
