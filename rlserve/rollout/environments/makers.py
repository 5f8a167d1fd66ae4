"""What makes the environments of a process: a class of the user's, or an environment of the verifiers package."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from rlserve.rollout.environments.config import EnvironmentConfig
from rlserve.rollout.environments.user_class import find_class
from rlserve.rollout.environments.verifiers.names import is_verifiers


def create_maker(config: EnvironmentConfig) -> Callable[[], Any]:
    """What makes an environment for each conversation, in this process.

    Raises:
        EnvironmentFailedError: what ``environment.name`` stands for cannot be found or loaded.
    """
    if is_verifiers(config.name):
        from rlserve.rollout.environments.verifiers.adapter import VerifiersEnvironment  # loads that package
        from rlserve.rollout.environments.verifiers.loading import load

        return partial(VerifiersEnvironment, load(config))
    found: Callable[..., Any] = find_class(config)
    return partial(found, **config.options)
