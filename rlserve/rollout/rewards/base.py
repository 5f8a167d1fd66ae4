"""The contract of a reward, and what it is shown of an answer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class RewardSample:
    """One answer to score."""

    id: str
    """Names the prompt's group and the sample; errors quote it."""
    prompt: str
    """As the data set has it."""
    response: str
    answer: str | None
    """Reference answer of the data set, where it has one."""
    finished: bool
    """False where the response was cut off by its length."""
    prompt_token_ids: tuple[int, ...]
    response_token_ids: tuple[int, ...]


class Reward(ABC):
    """Scores answers. Made in the process that scores, by ``rlserve.rollout.rewards.factory.create_reward``."""

    @abstractmethod
    def score(self, samples: Sequence[RewardSample]) -> list[float]:
        """One finite number for each sample, in the same order.

        Raises:
            RewardError: a sample cannot be scored; names the reward, the prompt's id and what happened.
        """
