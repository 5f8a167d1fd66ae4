"""REINFORCE++ with a baseline (Hu et al. 2025, arXiv 2501.03262): less the group's mean, then on the batch's scale."""

from __future__ import annotations

import dataclasses

from rlserve.trainers.algorithms.advantages.groups import group_advantages
from rlserve.trainers.algorithms.advantages.whitening import whiten
from rlserve.trainers.algorithms.answer_advantages import AnswerAdvantages
from rlserve.trainers.algorithms.base import Credit, Experience, FloatArray
from rlserve.trainers.algorithms.config import ReinforcePlusPlusBaselineConfig


class ReinforcePlusPlusBaseline(AnswerAdvantages[ReinforcePlusPlusBaselineConfig]):
    """See ``ReinforcePlusPlusBaselineConfig`` for what can be chosen."""

    def estimate(self, rewards_K: FloatArray, experience: Experience) -> Credit:
        """The advantages of answers, whitened over the tokens of the batch."""
        credit = super().estimate(rewards_K, experience)
        return dataclasses.replace(credit, policy_advantages=whiten(credit.advantages))

    def answer_advantages(self, rewards_B: FloatArray, experience: Experience) -> FloatArray:
        """How much better than the mean of its group an answer is."""
        return group_advantages(rewards_B, experience.group_index, "none")
