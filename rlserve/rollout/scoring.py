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
from typing import Any

import ray

from rlserve.errors import RewardError, WorkerLostError
from rlserve.remote import answer
from rlserve.rollout.config import RewardConfig
from rlserve.rollout.rewards.base import Reward, RewardSample
from rlserve.rollout.rewards.factory import create_reward

logger = logging.getLogger(__name__)

_START_TIMEOUT_S = 120.0


class _ScorerProcess:
    """What runs in the other process."""

    def __init__(self, config: RewardConfig) -> None:
        self._config = config

    def prepare(self) -> None:
        self._reward: Reward = create_reward(self._config)

    def score(self, samples: Sequence[RewardSample]) -> list[float]:
        return self._reward.score(samples)


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
            WorkerFailedError: the process did not come up.
        """
        actor_class: Any = ray.remote(_ScorerProcess)
        self._actor = actor_class.options(num_cpus=0, max_restarts=0).remote(self._config)
        await answer(self._actor.prepare.remote(), timeout_s=_START_TIMEOUT_S, what="the reward, being loaded")

    async def score(self, samples: Sequence[RewardSample]) -> list[float]:
        """One reward for each sample.

        Raises:
            RewardError: the reward raised, returned no finite number, hung past its deadline or killed its process.
        """
        async with self._busy:
            what = f"reward for prompt {samples[0].id}"
            try:
                rewards: list[float] = await answer(
                    self._actor.score.remote(samples), timeout_s=self._config.timeout_s, what=what
                )
            except WorkerLostError as error:
                logger.warning("%s; starting a new scorer", error)
                self.close()
                await self.start()
                raise RewardError(str(error)) from None
            return rewards

    def close(self) -> None:
        """End the process."""
        if self._actor is not None:
            ray.kill(self._actor, no_restart=True)
            self._actor = None
