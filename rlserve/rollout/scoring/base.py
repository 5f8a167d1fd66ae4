"""The contract of one process that scores, seen from the controller."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from rlserve.rollout.rewards.base import RewardSample, Score


class ScorerWorker(ABC):
    """Scores one prompt group at a time."""

    @abstractmethod
    async def start(self) -> None:
        """Start the process and load the reward; only where none is running.

        Raises:
            RewardError: the reward cannot be found or loaded.
            WorkerFailedError: the process did not come up.
        """

    @abstractmethod
    async def score(self, samples: Sequence[RewardSample]) -> list[Score]:
        """One score for each sample.

        Raises:
            WorkerLostError: the process died or did not answer before its deadline; it must be closed.
            WorkerFailedError: the reward raised something that no reward should; the process is still good.
        """

    @abstractmethod
    def close(self) -> None:
        """End the process at once, if there is one."""
