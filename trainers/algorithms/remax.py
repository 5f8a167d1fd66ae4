"""ReMax (Li et al. 2023, arXiv 2310.10505): the baseline of an answer is the reward of the greedy one."""

from __future__ import annotations

import numpy as np

from rlserve.trainers.algorithms.advantages.gae import rewards_to_go
from rlserve.trainers.algorithms.advantages.token_rewards import penalties
from rlserve.trainers.algorithms.base import Credit, Experience, FloatArray
from rlserve.trainers.algorithms.config import ReMaxConfig
from rlserve.trainers.algorithms.policy_gradient import PolicyGradient


class ReMax(PolicyGradient[ReMaxConfig]):
    """See ``ReMaxConfig`` for what can be chosen."""

    def estimate(self, rewards_K: FloatArray, experience: Experience) -> Credit:
        """The rewards of a token and all after it, the last of them less that of the greedy answer (algorithm 1), whose
        own penalties are taken off too."""
        greedy, lengths = experience.greedy_answers, experience.lengths
        assert greedy is not None
        compared_K = rewards_K.copy()
        compared_K[np.cumsum(lengths) - 1] -= greedy.rewards - penalties(
            greedy.lengths, greedy.finish_reasons, self._config
        )
        advantages = rewards_to_go(compared_K, lengths, gamma=self._config.gamma)
        return Credit(rewards=rewards_K, advantages=advantages, policy_advantages=advantages)
