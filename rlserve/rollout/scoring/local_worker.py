"""A scorer worker that is a process of this machine, where there is no Ray."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from rlserve.errors import RewardError, WorkerLostError
from rlserve.rollout.config import RewardConfig
from rlserve.rollout.rewards.base import RewardSample, Score
from rlserve.rollout.rewards.process import RewardProcess
from rlserve.rollout.scoring.base import ScorerWorker


class LocalScorerWorker(ScorerWorker):
    """One process; a new one after each ``close``. What the reward prints goes to standard error."""

    def __init__(self, config: RewardConfig) -> None:
        self._config = config
        self._process: RewardProcess | None = None

    async def start(self) -> None:
        # Started by this thread: a process ends with the thread that started it.
        self._process = RewardProcess(self._config, None)
        try:
            await asyncio.to_thread(self._process.load)
        except RewardError:
            self.close()
            raise

    async def score(self, samples: Sequence[RewardSample]) -> list[Score]:
        if self._process is None:
            await self.start()
        assert self._process is not None, "just started"
        try:
            scored = await asyncio.to_thread(self._process.score, samples, f"reward for prompt {samples[0].id}:")
        except RewardError as error:
            raise WorkerLostError(str(error)) from None
        return scored.scores

    def close(self) -> None:
        if self._process is not None:
            self._process.close()
            self._process = None
