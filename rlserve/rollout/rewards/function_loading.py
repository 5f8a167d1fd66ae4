"""Finding a reward function: ``package.module:function`` or ``path/to/file.py:function``."""

from __future__ import annotations

import os
import sys
import sysconfig
import traceback
from collections.abc import Callable
from importlib import import_module, invalidate_caches
from importlib.machinery import PathFinder
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

from rlserve.errors import RewardError
from rlserve.rollout.rewards.base import RewardSample

_PRIVATE_PREFIX = "rlserve_reward_"


def find_function(name: str) -> Callable[[RewardSample], Any]:
    """Import the function that ``name`` stands for. Modules are also looked up in the working directory.

    Raises:
        RewardError: the name is malformed, the file or module is not there or fails to import, or has no such function.
    """
    location, separator, attribute = name.rpartition(":")
    if not separator or not location or not attribute:
        raise RewardError(f"reward.function={name}: must be package.module:function or path/to/file.py:function")
    if location.endswith(".py"):
        path = Path(location).expanduser().absolute()
        if not path.is_file():
            raise RewardError(f"reward.function={name}: no such file: {location} (from {Path.cwd()})")
        module = _imported(name, location, lambda: import_file(path))
    else:
        add_to_path(Path.cwd())
        module = _imported(name, location, lambda: import_module(location))
    function = getattr(module, attribute, None)
    if function is None:
        functions = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        known = f"; it has {', '.join(functions)}" if functions else ""
        raise RewardError(f"reward.function={name}: {location} has no {attribute!r}{known}")
    if not callable(function):
        raise RewardError(f"reward.function={name}: {attribute!r} is not a function but {type(function).__name__}")
    return function  # type: ignore[no-any-return]


def import_file(path: Path) -> ModuleType:
    """Import a file as the module that its own processes, pickles and siblings know it by.

    Its folder is the last on the module path, so a sibling can be imported and none can take the place of a module
    that is installed. The module is named after the file; where that name belongs to another module it gets one of its
    own, under which a process that is spawned anew does not find it.
    """
    add_to_path(path.parent)
    module_name = path.stem if _is_free(path) else _PRIVATE_PREFIX + path.stem
    spec = spec_from_file_location(module_name, path)
    assert spec is not None, f"{path} ends in .py"
    assert spec.loader is not None
    module = sys.modules[module_name] = module_from_spec(spec)  # before its first line runs, as an import does
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[module_name]
        raise
    return module


def location_in(error: BaseException, start: str = "") -> str:
    """Where an exception was raised, as ``file:line`` behind ``start``; empty where only our own code took part.

    The innermost frame of the user's code, or else of an installed package.
    """
    if isinstance(error, SyntaxError) and error.filename is not None:
        return f"{start}{error.filename}:{error.lineno}"
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith(_OURS)]
    users = [frame for frame in frames if not frame.filename.startswith(_INSTALLED)] or frames
    return f"{start}{users[-1].filename}:{users[-1].lineno}" if users else ""


def _imported(name: str, location: str, load: Callable[[], ModuleType]) -> ModuleType:
    try:
        return load()
    except Exception as error:  # the user's module may raise anything while it is imported
        place = location_in(error, " at ")
        raise RewardError(
            f"reward.function={name}: {location} cannot be imported: {type(error).__name__}{place}: {error}"
        ) from error


def add_to_path(folder: Path) -> None:
    """Let modules be imported from ``folder``, after all others."""
    if str(folder) not in sys.path:
        sys.path.append(str(folder))


def _is_free(path: Path) -> bool:
    """Whether an import by the file's name finds this file and nothing else."""
    if not path.stem.isidentifier() or path.stem in sys.builtin_module_names:
        return False
    loaded = sys.modules.get(path.stem)
    if loaded is not None:
        return _is_file(getattr(loaded, "__file__", None), path)
    invalidate_caches()
    spec = PathFinder.find_spec(path.stem)
    return spec is not None and _is_file(spec.origin, path)


def _is_file(origin: str | None, path: Path) -> bool:
    return origin is not None and Path(origin).is_file() and path.samefile(origin)


_OURS = ("<", str(Path(__file__).parents[2]) + os.sep)
_INSTALLED = tuple({path + os.sep for path in sysconfig.get_paths().values()})
