"""Loading an environment of the verifiers package, and refusing by name what cannot be run here."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rlserve.errors import EnvironmentFailedError
from rlserve.rollout.environments.config import EnvironmentConfig
from rlserve.rollout.environments.verifiers.names import INSTALL, environment_id, module_of
from rlserve.rollout.rewards.function_loading import add_to_path, location_in


def load(config: EnvironmentConfig) -> Any:
    """The ``verifiers.Environment`` that ``load_environment(ID, **environment.options)`` returns. One object serves all
    conversations of a process, as in the package.

    Raises:
        EnvironmentFailedError: the package or the environment is not installed, loading it fails, or it is of a kind
            that cannot be run here.
    """
    assert config.name is not None, "there is an environment"
    place = f"environment.name={config.name}"
    if find_spec("verifiers") is None:
        raise EnvironmentFailedError(f"{place}: needs the verifiers package: {INSTALL}")
    for folder in (Path.cwd(), *([] if config.module_folder is None else [Path(config.module_folder)])):
        add_to_path(folder)
    if find_spec(module_of(config.name)) is None:
        where = f"install the environment, or start where {module_of(config.name)}.py lies"
        raise EnvironmentFailedError(f"{place}: there is no module {module_of(config.name)}; {where}")
    import verifiers

    if not hasattr(verifiers, "load_environment"):
        found = f"has no load_environment, but verifiers {verifiers.__version__} is installed"
        raise EnvironmentFailedError(f"{place}: the package {found}; take one that has it: {INSTALL}")
    with _own_signals():
        try:
            environment = verifiers.load_environment(environment_id(config.name), **config.options)
        except Exception as error:  # the environment's module may raise anything
            cause = error.__cause__ or error
            message = f"cannot be loaded: {type(cause).__name__}{location_in(cause, ' at ')}: {cause}"
            raise EnvironmentFailedError(f"{place}: {message}") from error
    problem = next(_problems(environment), None)
    if problem is not None:
        raise EnvironmentFailedError(f"{place}: cannot be run here, since it {problem}")
    return environment


@contextmanager
def _own_signals() -> Iterator[None]:
    """Environments of the package take signals to themselves, which are the business of who runs this process."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _problems(environment: Any) -> Iterator[str]:
    if environment.message_type != "chat":
        yield f"has message_type={environment.message_type!r}, and only chat messages are read"
    if not environment.score_rollouts:
        yield "has score_rollouts=False, which leaves no reward"
    rubric = environment.rubric
    if rubric.has_group_rewards:
        yield f"scores a group of answers together ({type(rubric).__name__}), and here each is scored by itself"
    if getattr(rubric, "has_advantages", False):
        yield f"computes advantages ({type(rubric).__name__}), which is the algorithm's part here"
    with_tools = next((inner for inner in getattr(environment, "envs", ()) if inner.tool_defs), None)
    if with_tools is not None:
        yield f"is a group with tools in one of its environments ({with_tools.env_id or type(with_tools).__name__})"
