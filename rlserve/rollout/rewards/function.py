"""A reward that is a Python function of the user: ``package.module:function`` or ``path/to/file.py:function``."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from numbers import Real
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from rlserve.errors import RewardError
from rlserve.rollout.rewards.base import Reward, RewardSample


class FunctionReward(Reward):
    """Calls the function once for each sample."""

    def __init__(self, name: str) -> None:
        """
        Raises:
            RewardError: see ``find_function``.
        """
        self._name = name
        self._function = find_function(name)

    def score(self, samples: Sequence[RewardSample]) -> list[float]:
        """What the function returns for each sample; True counts 1 and False 0."""
        return [self._score_one(sample) for sample in samples]

    def _score_one(self, sample: RewardSample) -> float:
        try:
            value = self._function(sample)
        except Exception as error:  # the user's code may raise anything
            raise RewardError(
                f"reward {self._name} raised on prompt {sample.id}: {type(error).__name__}: {error}"
            ) from error
        if not isinstance(value, Real | np.bool_) or not math.isfinite(value):
            raise RewardError(
                f"reward {self._name} must return a finite number, but returned {value!r:.80} "
                f"({type(value).__name__}) on prompt {sample.id}"
            )
        return float(value)


def find_function(name: str) -> Callable[[RewardSample], Any]:
    """Import the function that ``name`` stands for. Modules are also looked up in the working directory.

    Raises:
        RewardError: the name is malformed, the file or module is not there or fails to import, or has no such function.
    """
    location, separator, attribute = name.rpartition(":")
    if not separator or not location or not attribute:
        raise RewardError(f"reward.function={name}: must be package.module:function or path/to/file.py:function")
    module = _import_file(name, Path(location).expanduser()) if location.endswith(".py") else _import(name, location)
    function = getattr(module, attribute, None)
    if function is None:
        functions = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        known = f"; it has {', '.join(functions)}" if functions else ""
        raise RewardError(f"reward.function={name}: {location} has no {attribute!r}{known}")
    if not callable(function):
        raise RewardError(f"reward.function={name}: {attribute!r} is not a function but {type(function).__name__}")
    return function  # type: ignore[no-any-return]


def _import(name: str, module_name: str) -> ModuleType:
    if str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))
    try:
        return import_module(module_name)
    except Exception as error:  # the user's module may raise anything while it is imported
        raise RewardError(
            f"reward.function={name}: {module_name} cannot be imported: {type(error).__name__}: {error}"
        ) from error


def _import_file(name: str, path: Path) -> ModuleType:
    if not path.is_file():
        raise RewardError(f"reward.function={name}: no such file: {path} (from {Path.cwd()})")
    spec = spec_from_file_location(path.stem, path)
    assert spec is not None, f"{path} ends in .py"
    assert spec.loader is not None
    module = module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # as above
        raise RewardError(
            f"reward.function={name}: {path} cannot be imported: {type(error).__name__}: {error}"
        ) from error
    return module
