"""OPO (Hao et al. 2025, arXiv 2505.23585): the baseline is the mean reward of the group, weighted by length."""

from __future__ import annotations

from rlserve.trainers.algorithms.advantages.groups import group_sums
from rlserve.trainers.algorithms.answer_advantages import AnswerAdvantages
from rlserve.trainers.algorithms.base import Experience, FloatArray
from rlserve.trainers.algorithms.config import OPOConfig


class OPO(AnswerAdvantages[OPOConfig]):
    """See ``OPOConfig`` for what can be chosen."""

    def answer_advantages(self, rewards_B: FloatArray, experience: Experience) -> FloatArray:
        """Less the baseline of least variance, if the square of an answer's gradient grows as its length does."""
        lengths_B, groups_B = experience.lengths.astype(float), experience.group_index
        return rewards_B - group_sums(lengths_B * rewards_B, groups_B) / group_sums(lengths_B, groups_B)
