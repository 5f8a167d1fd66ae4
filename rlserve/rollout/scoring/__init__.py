"""Scoring in processes of its own, so that a reward that hangs, crashes or is slow cannot stop the run.

::

    score(samples) ──► a free worker: a process that made the reward once ──► one score for each answer
                          │ no answer within reward.timeout_s, or the process died
                          └──► killed and started anew while the others go on; the group is reported as failed
"""

from rlserve.rollout.scoring.base import AnswerScorer, ScorerWorker
from rlserve.rollout.scoring.scorer import Scorer, score_in_groups

__all__ = ["AnswerScorer", "Scorer", "ScorerWorker", "score_in_groups"]
