"""REINFORCE++ (Hu et al. 2025, arXiv 2501.03262): no critic and no groups; returns of tokens, on the batch's scale."""

from __future__ import annotations

from rlserve.trainers.algorithms.advantages.gae import rewards_to_go
from rlserve.trainers.algorithms.advantages.whitening import whiten
from rlserve.trainers.algorithms.base import Credit, Experience, FloatArray
from rlserve.trainers.algorithms.config import ReinforcePlusPlusConfig
from rlserve.trainers.algorithms.policy_gradient import PolicyGradient


class ReinforcePlusPlus(PolicyGradient[ReinforcePlusPlusConfig]):
    """See ``ReinforcePlusPlusConfig`` for what can be chosen."""

    def estimate(self, rewards_K: FloatArray, experience: Experience) -> Credit:
        """The rewards of a token and all after it, whitened over the tokens of the batch."""
        advantages = rewards_to_go(rewards_K, experience.lengths, gamma=self._config.gamma)
        return Credit(rewards=rewards_K, advantages=advantages, policy_advantages=whiten(advantages))
