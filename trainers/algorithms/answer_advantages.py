"""What algorithms without a critic have in common: all tokens of an answer get the answer's advantage."""

from __future__ import annotations

from abc import abstractmethod

import numpy as np

from rlserve.trainers.algorithms.advantages.token_rewards import sample_rewards
from rlserve.trainers.algorithms.base import Credit, Experience, FloatArray
from rlserve.trainers.algorithms.policy_gradient import ConfigT, PolicyGradient


class AnswerAdvantages(PolicyGradient[ConfigT]):
    """Leaves the advantages of answers to its subclasses."""

    def estimate(self, rewards_K: FloatArray, experience: Experience) -> Credit:
        """The advantages of the answers, each given to all tokens of its answer."""
        lengths = experience.lengths
        advantages = np.repeat(self.answer_advantages(sample_rewards(rewards_K, lengths), experience), lengths)
        return Credit(rewards=rewards_K, advantages=advantages, policy_advantages=advantages)

    @abstractmethod
    def answer_advantages(self, rewards_B: FloatArray, experience: Experience) -> FloatArray:
        """[B] from the rewards of whole answers, less any penalties."""
