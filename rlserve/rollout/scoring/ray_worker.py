"""A scorer worker that is a Ray actor with resources of its own."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ray

from rlserve.errors import WorkerLostError
from rlserve.remote import answer
from rlserve.rollout.config import RewardConfig
from rlserve.rollout.rewards.base import Reward, RewardSample, Score
from rlserve.rollout.rewards.factory import create_reward
from rlserve.rollout.rewards.output import redirect_output
from rlserve.rollout.scoring.base import ScorerWorker

_START_TIMEOUT_S = 120.0


class _ScorerProcess:
    """What runs in the other process. Its calls run on the main thread: rewards may use signals for deadlines."""

    def __init__(self, config: RewardConfig, index: int, log_path: Path) -> None:
        redirect_output(log_path, name=f"scorer-{index}")
        if config.num_gpus == 0:
            os.environ["CUDA_VISIBLE_DEVICES"] = ""  # the GPUs belong to the slots
        self._config = config

    def prepare(self) -> None:
        self._reward: Reward = create_reward(self._config)

    def score(self, samples: Sequence[RewardSample]) -> list[Score]:
        return self._reward.score(samples)


class RayScorerWorker(ScorerWorker):
    """One actor; a new one after each ``close``."""

    def __init__(self, config: RewardConfig, index: int, log_path: Path) -> None:
        self._config = config
        self._index = index
        self._log_path = log_path
        self._actor: Any = None

    async def start(self) -> None:
        config = self._config
        if self._actor is None:
            actor_class: Any = ray.remote(_ScorerProcess)
            self._actor = actor_class.options(
                num_cpus=config.num_cpus, num_gpus=config.num_gpus, max_restarts=0, scheduling_strategy="SPREAD"
            ).remote(config, self._index, self._log_path)
        what = f"reward worker {self._index}, starting"
        try:
            await answer(self._actor.prepare.remote(), timeout_s=_START_TIMEOUT_S, what=what)
        except WorkerLostError as error:
            self.close()
            if not (config.num_cpus or config.num_gpus):
                raise
            wanted = f"reward.num_cpus={config.num_cpus:g} and reward.num_gpus={config.num_gpus:g}"
            raise WorkerLostError(f"{error}; are {wanted} free for each of {config.num_processes} of them?") from None

    async def score(self, samples: Sequence[RewardSample]) -> list[Score]:
        if self._actor is None:
            await self.start()
        what = f"reward for prompt {samples[0].id}"
        scores: list[Score] = await answer(
            self._actor.score.remote(samples), timeout_s=self._config.timeout_s, what=what
        )
        return scores

    def close(self) -> None:
        if self._actor is not None:
            ray.kill(self._actor, no_restart=True)
            self._actor = None
