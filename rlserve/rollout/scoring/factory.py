"""Makes the scorer of a run, and that of a command without one."""

from __future__ import annotations

from pathlib import Path

from rlserve.rollout.config import RewardConfig
from rlserve.rollout.scoring.base import AnswerScorer
from rlserve.rollout.scoring.local_worker import LocalScorerWorker
from rlserve.rollout.scoring.no_reward import NoReward
from rlserve.rollout.scoring.ray_worker import RayScorerWorker
from rlserve.rollout.scoring.scorer import Scorer


def create_scorer(config: RewardConfig, log_path: Path, *, on_this_machine: bool) -> AnswerScorer:
    """As many workers as the configuration asks for, not started yet. What the reward prints goes to ``log_path``.

    Where the whole run is on this machine, rewards without a model or resources of their own need no Ray.
    """
    if not config.is_named:
        return NoReward()
    is_plain = not config.has_model and not config.num_cpus and not config.num_gpus
    if on_this_machine and is_plain:
        return _local_scorer(config, log_path)
    return Scorer([RayScorerWorker(config, index, log_path) for index in range(config.num_processes)])


def create_local_scorer(config: RewardConfig) -> AnswerScorer:
    """As many workers, on this machine without Ray. What the reward prints goes to standard error."""
    return _local_scorer(config, None) if config.is_named else NoReward()


def _local_scorer(config: RewardConfig, log_path: Path | None) -> Scorer:
    names = [f"scorer-{index}" for index in range(config.num_processes)]
    return Scorer([LocalScorerWorker(config, name=name, log_path=log_path) for name in names])
