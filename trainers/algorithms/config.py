"""Configuration of the algorithms, one dataclass each, told apart by ``name``. Imports neither torch nor NumPy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from rlserve.errors import check_fields


@dataclass(frozen=True, kw_only=True)
class Needs:
    """What an algorithm needs; the rest takes no memory and no time."""

    critic: bool = False
    """A second network that predicts returns, with an optimizer of its own."""
    reference: bool = False
    """A frozen copy of the initial policy."""
    log_probs: bool = False
    """The policy's log-probabilities before credit is given. A step of several updates has them in any case."""
    final_values: bool = False
    """The critic's values of the states after samples that were cut."""
    entropies: bool = False
    """The entropy of the policy at each token, in the loss."""
    groups: bool = False
    """Several answers to the same prompt, which are compared with each other."""


@dataclass(frozen=True, kw_only=True)
class UpdateConfig:
    """What all algorithms have that improve a policy by clipped updates on its own samples."""

    num_epochs: int = 1
    """Passes over the samples of a step."""
    num_mini_batches: int = 1
    """Optimizer steps in a pass."""
    clip_ratio: float = 0.2
    """Half-width of the interval that the probability ratio is clipped to (arXiv 1707.06347, equation 7)."""
    entropy_coefficient: float = 0.0
    """Weight of the policy's entropy, subtracted from the loss."""
    importance_sampling_cap: float = 2.0
    """Cap of the truncated importance weight that corrects the engine's log-probabilities to the trainer's."""

    def __post_init__(self) -> None:
        check_fields(self, self._ranges())

    def _ranges(self) -> dict[str, bool | str]:
        return {
            "num_epochs": self.num_epochs >= 1 or "must be at least 1",
            "num_mini_batches": self.num_mini_batches >= 1 or "must be at least 1",
            "clip_ratio": self.clip_ratio > 0 or "must be above 0",
            "entropy_coefficient": self.entropy_coefficient >= 0 or "must be at least 0",
            "importance_sampling_cap": self.importance_sampling_cap >= 1 or "must be at least 1",
        }


@dataclass(frozen=True, kw_only=True)
class PPOConfig(UpdateConfig):
    """PPO with a critic (Schulman et al. 2017, arXiv 1707.06347)."""

    name: Literal["ppo"] = "ppo"
    """The algorithm."""
    value_clip: float = 0.2
    """Half-width of the interval around the old value that the new value is clipped to."""
    gamma: float = 1.0
    """Discount per token."""
    gae_lambda: float = 0.95
    """Lambda of generalised advantage estimation (arXiv 1506.02438, equation 16)."""
    kl_coefficient: float = 0.0
    """Weight of the per-token KL penalty to the frozen reference, subtracted from the reward; 0 keeps no reference."""
    value_coefficient: float = 0.5
    """Weight of the value loss."""
    bound_whitening: bool = True
    """Whitened advantages have standard deviation 1, or less where the rewards that follow the tokens spread less than
    the advantages do: then most of the advantages is the critic's error. Where all rewards are alike the policy stays
    as it is. False whitens to 1 always, as TRL and verl do."""
    bootstrap_truncated: bool = False
    """Count the critic's value of the state after the last token of an answer that was cut by a limit of length. False
    takes every answer's end for the end of the episode, as TRL and verl do."""

    @property
    def needs(self) -> Needs:
        """A critic; the reference for a penalty."""
        penalised = self.kl_coefficient > 0
        return Needs(
            critic=True,
            reference=penalised,
            log_probs=penalised,
            final_values=self.bootstrap_truncated,
            entropies=self.entropy_coefficient > 0,
        )

    def _ranges(self) -> dict[str, bool | str]:
        return super()._ranges() | {
            "value_clip": self.value_clip > 0 or "must be above 0",
            "gamma": 0 <= self.gamma <= 1 or "must be between 0 and 1",
            "gae_lambda": 0 <= self.gae_lambda <= 1 or "must be between 0 and 1",
            "kl_coefficient": self.kl_coefficient >= 0 or "must be at least 0",
            "value_coefficient": self.value_coefficient > 0 or "must be above 0",
        }


@dataclass(frozen=True, kw_only=True)
class GRPOConfig(UpdateConfig):
    """GRPO (Shao et al. 2024, arXiv 2402.03300): answers to one prompt are compared with each other; no critic."""

    name: Literal["grpo"] = "grpo"
    """The algorithm."""
    norm_adv_by_std_in_grpo: bool = True
    """Divide by the standard deviation of the rewards of a prompt's answers; False as in Dr. GRPO (arXiv 2503.20783).
    verl's name; TRL says ``scale_rewards``."""
    kl_loss_coefficient: float = 0.0
    """Weight of the KL divergence from the frozen reference, added to the loss of each token (equation 4: k3, which is
    never below 0). 0 keeps no reference; the paper has 0.04."""

    @property
    def needs(self) -> Needs:
        """Several answers a prompt; the reference for the KL term."""
        return Needs(reference=self.kl_loss_coefficient > 0, entropies=self.entropy_coefficient > 0, groups=True)

    def _ranges(self) -> dict[str, bool | str]:
        return super()._ranges() | {
            "kl_loss_coefficient": self.kl_loss_coefficient >= 0 or "must be at least 0",
        }


AlgorithmConfig = PPOConfig | GRPOConfig
"""Any algorithm's; without a ``name`` it is the first."""
