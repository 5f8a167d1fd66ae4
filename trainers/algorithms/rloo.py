"""RLOO (Ahmadian et al. 2024, arXiv 2402.14740): the baseline of an answer is the mean reward of the others."""

from __future__ import annotations

import numpy as np

from rlserve.trainers.algorithms.advantages.groups import group_sizes, group_sums
from rlserve.trainers.algorithms.answer_advantages import AnswerAdvantages
from rlserve.trainers.algorithms.base import Experience, FloatArray
from rlserve.trainers.algorithms.config import RLOOConfig


class RLOO(AnswerAdvantages[RLOOConfig]):
    """See ``RLOOConfig`` for what can be chosen."""

    def answer_advantages(self, rewards_B: FloatArray, experience: Experience) -> FloatArray:
        """Equation 8: the reward less the mean of the others; 0 without others."""
        num_others_B = group_sizes(experience.group_index) - 1
        others_B = (group_sums(rewards_B, experience.group_index) - rewards_B) / np.maximum(num_others_B, 1)
        return np.where(num_others_B > 0, rewards_B - others_B, 0.0)
