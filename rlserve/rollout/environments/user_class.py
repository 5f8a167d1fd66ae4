"""An environment that is a class of the user's: ``package.module:Class`` or ``path/to/file.py:Class``."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from rlserve.errors import EnvironmentFailedError
from rlserve.rollout.environments.config import EnvironmentConfig
from rlserve.rollout.rewards.function_loading import add_to_path, import_file, location_in

_METHODS = ("reset", "step")


def find_class(config: EnvironmentConfig) -> type[Any]:
    """Import the class that ``environment.name`` stands for. Modules are also looked up in the working folder.

    Raises:
        EnvironmentFailedError: the file or module is not there or fails to import, has no such class, the class lacks
            a method, or does not take ``environment.options``.
    """
    assert config.name is not None, "there is an environment"
    place = f"environment.name={config.name}"
    location, _, attribute = config.name.rpartition(":")
    if config.module_folder is not None:
        add_to_path(Path(config.module_folder))
    module = _imported(place, location)
    found = getattr(module, attribute, None)
    if not isinstance(found, type):
        classes = [key for key, value in vars(module).items() if isinstance(value, type) and not key.startswith("_")]
        known = f"; it has {', '.join(classes)}" if classes else ""
        raise EnvironmentFailedError(f"{place}: {location} has no class {attribute!r}{known}")
    lacking = [method for method in _METHODS if not callable(getattr(found, method, None))]
    if lacking:
        raise EnvironmentFailedError(f"{place}: {attribute} needs the methods reset and step, and has no {lacking[0]}")
    _check_options(place, found, config.options)
    return found


def _check_options(place: str, found: type[Any], options: dict[str, Any]) -> None:
    try:
        inspect.signature(found).bind(**options)
    except TypeError as error:
        names = ", ".join(options) or "none"
        raise EnvironmentFailedError(f"{place}: does not take environment.options ({names}): {error}") from None
    except ValueError:
        return  # a class written in C may not tell what it takes


def _imported(place: str, location: str) -> ModuleType:
    load: Callable[[], ModuleType]
    if location.endswith(".py"):
        path = Path(location).expanduser().absolute()
        if not path.is_file():
            raise EnvironmentFailedError(f"{place}: no such file: {location} (from {Path.cwd()})")
        load = lambda: import_file(path)  # noqa: E731
    else:
        add_to_path(Path.cwd())
        load = lambda: import_module(location)  # noqa: E731
    try:
        return load()
    except Exception as error:  # the user's module may raise anything while it is imported
        where = location_in(error, " at ")
        message = f"{place}: {location} cannot be imported: {type(error).__name__}{where}: {error}"
        raise EnvironmentFailedError(message) from error
