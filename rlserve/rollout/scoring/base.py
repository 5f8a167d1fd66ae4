"""The contracts of scoring: of all that scores a run's answers, and of one process of it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Protocol

from rlserve.rollout.rewards.base import RewardSample, Score


class AnswerScorer(Protocol):
    """Scores answers, in this process or in others: what a run and an evaluation need."""

    @property
    def num_workers(self) -> int:
        """Groups that can be scored at once."""

    async def start(self) -> None:
        """Get ready.

        Raises:
            RewardError: the reward cannot be found or loaded.
        """

    async def score(self, samples: Sequence[RewardSample]) -> list[Score]:
        """One score for each sample.

        Raises:
            RewardError: they could not be scored.
        """

    def close(self) -> None:
        """End all processes."""


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
