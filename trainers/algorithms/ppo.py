"""PPO with a critic (Schulman et al. 2017, arXiv 1707.06347), its advantages by GAE (arXiv 1506.02438)."""

from __future__ import annotations

import math
from functools import partial

from rlserve.trainers.algorithms.advantages.gae import (
    generalised_advantages,
    length_adaptive_lambdas,
    rewards_to_go,
)
from rlserve.trainers.algorithms.advantages.whitening import to_unit_spread, whiten
from rlserve.trainers.algorithms.base import ActorCritic, Credit, Experience, FloatArray, ValueLoss, ValueTokens
from rlserve.trainers.algorithms.config import PPOConfig
from rlserve.trainers.algorithms.losses.value import clipped_value_loss
from rlserve.trainers.algorithms.policy_gradient import PolicyGradient


class PPO(PolicyGradient[PPOConfig], ActorCritic):
    """See ``PPOConfig`` for what can be chosen."""

    def estimate(self, rewards_K: FloatArray, experience: Experience) -> Credit:
        """Generalised advantages, whitened over the tokens of the batch; the critic may have returns of its own."""
        config, lengths, values = self._config, experience.lengths, experience.values
        assert values is not None
        if config.whiten_rewards:
            rewards_K = to_unit_spread(rewards_K)
        estimate = partial(
            generalised_advantages,
            rewards_K,
            values,
            lengths,
            gamma=config.gamma,
            final_values=experience.final_values,
        )
        alpha = config.length_adaptive_alpha
        advantages, returns = estimate(
            gae_lambda=config.gae_lambda if alpha is None else length_adaptive_lambdas(lengths, alpha)
        )
        if config.critic_gae_lambda is not None:
            _, returns = estimate(gae_lambda=config.critic_gae_lambda)
        max_spread = math.inf
        if config.bound_whitening:
            max_spread = float(rewards_to_go(rewards_K, lengths, gamma=config.gamma).std())
        return Credit(
            rewards=rewards_K,
            advantages=advantages,
            policy_advantages=whiten(advantages, max_spread),
            returns=returns,
        )

    def value_loss(self, tokens: ValueTokens) -> ValueLoss:
        """The squared error of the values, clipped."""
        term = clipped_value_loss(tokens.values, tokens.old_values, tokens.returns, self._config.value_clip)
        return ValueLoss(
            per_token=self._config.value_coefficient * term.per_token,
            losses={"critic/vf_loss": term.per_token},
            means={"critic/vf_clipfrac": term.is_clipped},
        )
