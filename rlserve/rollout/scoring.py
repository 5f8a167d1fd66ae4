"""Scoring in a process of its own, so that a reward that hangs or crashes cannot stop the controller.

::

    score(samples) ──► scorer process (create_reward once) ──► rewards, or the reward's own complaint
                          │ no answer within reward.timeout_s, or the process died
                          └──► killed and replaced; the group is reported as failed
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayActorError

from rlserve.errors import DeadlineExceededError, RewardError
from rlserve.rollout.config import RewardConfig
from rlserve.rollout.rewards.base import RewardSample
from rlserve.rollout.rewards.factory import create_reward

logger = logging.getLogger(__name__)

_START_TIMEOUT_S = 120.0


@dataclass(frozen=True)
class _Complaint:
    """A RewardError on its way back: as a value, so that it arrives as it left."""

    message: str


class _ScorerProcess:
    def __init__(self, config: RewardConfig) -> None:
        self._config = config
        self._reward: Any = None

    def prepare(self) -> _Complaint | None:
        try:
            self._reward = create_reward(self._config)
        except RewardError as error:
            return _Complaint(str(error))
        return None

    def score(self, samples: Sequence[RewardSample]) -> list[float] | _Complaint:
        try:
            rewards: list[float] = self._reward.score(samples)
        except RewardError as error:
            return _Complaint(str(error))
        return rewards


class Scorer:
    """Scores one prompt group at a time in another process."""

    def __init__(self, config: RewardConfig) -> None:
        self._config = config
        self._actor: Any = None
        self._busy = asyncio.Lock()

    async def start(self) -> None:
        """Start the process and find the reward.

        Raises:
            RewardError: the reward cannot be found or loaded.
            DeadlineExceededError: the process did not come up.
        """
        actor_class: Any = ray.remote(_ScorerProcess)
        self._actor = actor_class.options(num_cpus=0, max_restarts=0).remote(self._config)
        try:
            complaint = await asyncio.wait_for(self._actor.prepare.remote(), _START_TIMEOUT_S)
        except TimeoutError:
            raise DeadlineExceededError(f"the reward did not load within {_START_TIMEOUT_S:g} s") from None
        if complaint is not None:
            raise RewardError(complaint.message)

    async def score(self, samples: Sequence[RewardSample]) -> list[float]:
        """One reward for each sample.

        Raises:
            RewardError: the reward raised, returned no finite number, hung past its deadline or killed its process.
        """
        async with self._busy:
            try:
                answer = await asyncio.wait_for(self._actor.score.remote(samples), self._config.timeout_s)
            except TimeoutError:
                failure = f"no answer within reward.timeout_s={self._config.timeout_s:g} s"
            except RayActorError:
                failure = "its process died"
            else:
                if isinstance(answer, _Complaint):
                    raise RewardError(answer.message)
                return list(answer)
            logger.warning("reward for prompt %s: %s; starting a new scorer", samples[0].id, failure)
            self.close()
            await self.start()
            raise RewardError(f"reward for prompt {samples[0].id}: {failure}")

    def close(self) -> None:
        """End the process."""
        if self._actor is not None:
            ray.kill(self._actor, no_restart=True)
            self._actor = None
