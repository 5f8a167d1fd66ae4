"""Without a reward: what is trained on is what an environment gives."""

from __future__ import annotations

from collections.abc import Sequence

from rlserve.rollout.rewards.base import RewardSample, Score
from rlserve.rollout.scoring.base import AnswerScorer


class NoReward(AnswerScorer):
    """Gives 0, which the environment's rewards are added to. Has no process."""

    @property
    def num_workers(self) -> int:
        """One is enough for what takes no time."""
        return 1

    async def start(self) -> None:
        return

    async def score(self, samples: Sequence[RewardSample]) -> list[Score]:
        return [Score(value=0.0) for _ in samples]

    def close(self) -> None:
        return
