"""Trying the environment before anything is started."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

from rlserve.errors import EnvironmentFailedError, WorkerLostError
from rlserve.rollout.conversations.player import task_of
from rlserve.rollout.environments.config import EnvironmentConfig
from rlserve.rollout.environments.factory import create_environments
from rlserve.rollout.groups import PromptGroup

_HOW = "tried before the run"


def try_environment(config: EnvironmentConfig, prompt: PromptGroup, log_path: Path | None) -> None:
    """Find the class, make an environment in a process of its own, reset it for a held-out prompt and close it. What it
    prints goes to ``log_path``, or to standard error.

    Raises:
        EnvironmentFailedError: one of these fails or hangs, or ends the process.
    """
    asyncio.run(_try(config, prompt, log_path))


async def _try(config: EnvironmentConfig, prompt: PromptGroup, log_path: Path | None) -> None:
    environments = create_environments(replace(config, num_workers=1), log_path)
    if environments is None:
        return
    try:
        await environments.start()
        (await environments.open(task_of(prompt, 0))).close()
        await environments.closed()
    except EnvironmentFailedError as error:
        raise EnvironmentFailedError(f"{error} ({_HOW})") from None
    except WorkerLostError as error:
        raise EnvironmentFailedError(f"environment {config.name} on prompt {prompt.id}: {error} ({_HOW})") from None
    finally:
        environments.close()
