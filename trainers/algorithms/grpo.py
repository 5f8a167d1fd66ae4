"""GRPO (Shao et al. 2024, arXiv 2402.03300): the answers to one prompt are compared with each other; no critic."""

from __future__ import annotations

from rlserve.trainers.algorithms.advantages.groups import group_advantages
from rlserve.trainers.algorithms.answer_advantages import AnswerAdvantages
from rlserve.trainers.algorithms.base import Experience, FloatArray
from rlserve.trainers.algorithms.config import GRPOConfig


class GRPO(AnswerAdvantages[GRPOConfig]):
    """See ``GRPOConfig`` for what can be chosen."""

    def answer_advantages(self, rewards_B: FloatArray, experience: Experience) -> FloatArray:
        """How much better than its group an answer is, in standard deviations (section 4.1.2)."""
        return group_advantages(rewards_B, experience.group_index, self._config.scale_rewards)
