"""Makes the processes that hold a run's environments."""

from __future__ import annotations

from pathlib import Path

from rlserve.rollout.environments.config import EnvironmentConfig
from rlserve.rollout.environments.pool import EnvironmentPool
from rlserve.rollout.environments.worker import EnvironmentWorker


def create_environments(config: EnvironmentConfig, log_path: Path | None) -> EnvironmentPool | None:
    """As many processes as the configuration asks for, not started yet; None where there is no environment. What
    environments print goes to ``log_path``; None lets it go to standard error."""
    if config.name is None:
        return None
    names = [f"environments-{index}" for index in range(config.num_workers)]
    workers = [EnvironmentWorker(config, name=name, log_path=log_path) for name in names]
    return EnvironmentPool(workers, max_concurrent=config.max_concurrent)
