"""PPO with a critic (Schulman et al. 2017, arXiv 1707.06347), its advantages by GAE (arXiv 1506.02438)."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from rlserve.trainers.algorithms.advantages import generalised_advantages, rewards_to_go, token_rewards, whiten
from rlserve.trainers.algorithms.aggregation import token_mean
from rlserve.trainers.algorithms.base import (
    ActorCritic,
    Credit,
    Experience,
    PolicyLoss,
    PolicyTokens,
    TokenWeights,
    ValueLoss,
    ValueTokens,
)
from rlserve.trainers.algorithms.config import PPOConfig
from rlserve.trainers.algorithms.losses import clipped_policy_loss, clipped_value_loss


class PPO(ActorCritic):
    """See ``PPOConfig`` for what can be chosen."""

    def __init__(self, config: PPOConfig) -> None:
        self.needs = config.needs
        self.num_epochs = config.num_epochs
        self.num_mini_batches = config.num_mini_batches
        self._config = config

    def credit(self, experience: Experience) -> Credit:
        """Generalised advantages of rewards less the KL penalty, whitened over the tokens of the batch."""
        config, lengths, values = self._config, experience.lengths, experience.values
        assert values is not None
        rewards = token_rewards(
            experience.rewards,
            lengths,
            experience.log_probs,
            experience.reference_log_probs,
            config.kl_coefficient,
        )
        advantages, returns = generalised_advantages(
            rewards,
            values,
            lengths,
            gamma=config.gamma,
            gae_lambda=config.gae_lambda,
            final_values=experience.final_values,
        )
        max_spread = math.inf
        if config.bound_whitening:
            max_spread = float(rewards_to_go(rewards, lengths, gamma=config.gamma).std())
        return Credit(
            rewards=rewards,
            advantages=advantages,
            policy_advantages=whiten(advantages, max_spread),
            returns=returns,
        )

    def token_weights(self, lengths: NDArray[np.int32]) -> TokenWeights:
        """All tokens of a mini-batch alike."""
        return token_mean(lengths)

    def policy_loss(self, tokens: PolicyTokens) -> PolicyLoss:
        """Equation 7, with the entropy bonus of equation 9."""
        return clipped_policy_loss(
            tokens,
            clip_ratio=self._config.clip_ratio,
            entropy_coefficient=self._config.entropy_coefficient,
            importance_sampling_cap=self._config.importance_sampling_cap,
        )

    def value_loss(self, tokens: ValueTokens) -> ValueLoss:
        """The squared error of the values, clipped."""
        term = clipped_value_loss(tokens.values, tokens.old_values, tokens.returns, self._config.value_clip)
        return ValueLoss(
            per_token=self._config.value_coefficient * term.per_token,
            losses={"critic/vf_loss": term.per_token},
            means={"critic/vf_clipfrac": term.is_clipped},
        )
