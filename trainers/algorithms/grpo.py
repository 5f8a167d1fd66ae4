"""GRPO (Shao et al. 2024, arXiv 2402.03300): the answers to one prompt are compared with each other; no critic."""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import NDArray

from rlserve.trainers.algorithms.advantages import group_advantages
from rlserve.trainers.algorithms.aggregation import sequence_mean
from rlserve.trainers.algorithms.base import Algorithm, Credit, Experience, PolicyLoss, PolicyTokens, TokenWeights
from rlserve.trainers.algorithms.config import GRPOConfig
from rlserve.trainers.algorithms.losses import clipped_policy_loss, kl_k3


class GRPO(Algorithm):
    """See ``GRPOConfig`` for what can be chosen."""

    def __init__(self, config: GRPOConfig) -> None:
        self.needs = config.needs
        self.num_epochs = config.num_epochs
        self.num_mini_batches = config.num_mini_batches
        self._config = config

    def credit(self, experience: Experience) -> Credit:
        """Every token of an answer gets its advantage within the group (section 4.1.2)."""
        lengths = experience.lengths
        per_sample = group_advantages(
            experience.rewards, experience.group_index, scale_by_std=self._config.norm_adv_by_std_in_grpo
        )
        advantages = np.repeat(per_sample, lengths)
        rewards = np.zeros(int(lengths.sum()))
        rewards[np.cumsum(lengths) - 1] = experience.rewards
        return Credit(rewards=rewards, advantages=advantages, policy_advantages=advantages)

    def token_weights(self, lengths: NDArray[np.int32]) -> TokenWeights:
        """All answers alike, whatever their lengths (equation 3)."""
        return sequence_mean(lengths)

    def policy_loss(self, tokens: PolicyTokens) -> PolicyLoss:
        """Equation 3: the clipped surrogate, with the KL divergence from the reference in the loss."""
        loss = clipped_policy_loss(
            tokens,
            clip_ratio=self._config.clip_ratio,
            entropy_coefficient=self._config.entropy_coefficient,
            importance_sampling_cap=self._config.importance_sampling_cap,
        )
        if tokens.reference_log_probs is None:
            return loss
        divergence = kl_k3(tokens.log_probs, tokens.reference_log_probs)
        return dataclasses.replace(
            loss,
            per_token=loss.per_token + self._config.kl_loss_coefficient * divergence,
            losses={**loss.losses, "actor/kl_loss": divergence},
        )
