"""Checks of what a configuration points at: model, data, reward. Looks at files, imports no one's code, no torch.

They take flat plain values, dotted key to value, so that they also run on a configuration that is wrong elsewhere.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from pathlib import Path

from rlserve.engine.models import check_supported
from rlserve.errors import ModelError, Problem
from rlserve.rollout.environments.verifiers.names import ID, PREFIX, environment_id, is_verifiers
from rlserve.rollout.rewards.config import BUILTIN_FUNCTIONS
from rlserve.tasks import TASKS, is_builtin

_HUB_MODEL = re.compile(r"[\w.-]+/[\w.-]+")
_HUB_DATA = re.compile(r"[\w.-]+(/[\w.-]+)?(:[\w.-]+)?")
_URL = re.compile(r"https?://[^/\s]+\S*")
_MODULE = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*")
_DATA_SUFFIXES = (".jsonl", ".json", ".parquet")


def check_references(values: Mapping[str, object]) -> tuple[Problem, ...]:
    """Problems of every reference in ``values``; keys that are absent or not text are passed over."""
    checks = {
        "model.path": _check_policy,
        "model.tokenizer_path": _check_model,
        "data.path": _check_data,
        "data.held_out_path": _check_data,
        "reward.function": _check_function,
        "reward.url": _check_url,
        "reward.model_path": _check_model,
        "trainer.critic_model_path": _check_model,
        "reward.parts.*.function": _check_function,
        "environment.name": _check_class,
        "reward.parts.*.url": _check_url,
        "reward.parts.*.model_path": _check_model,
    }
    return tuple(
        Problem(key, message)
        for pattern, check in checks.items()
        for key, value in values.items()
        if isinstance(value, str) and fnmatchcase(key, pattern)
        for message in (check(value) if value.strip() else ("must not be empty",))
    )


def _check_policy(path: str) -> Iterator[str]:
    """The model that is trained: also its architecture must be one that the engine runs."""
    if is_builtin(path):
        yield from _check_builtin(path)
    elif Path(path).is_dir():
        try:
            check_supported(path)
        except ModelError as error:
            yield str(error)
    else:
        yield from _check_model(path)


def _check_model(path: str) -> Iterator[str]:
    """Any Hugging Face folder, or a name that the hub could have."""
    if is_builtin(path):
        yield f"no builtin model can stand here, got {path!r}"
    elif Path(path).is_file():
        yield f"{path} is a file, and no model: name the folder that holds its config.json"
    elif not Path(path).is_dir() and not _HUB_MODEL.fullmatch(path):
        yield f"no such folder, and no name on the hub (org/name): {path!r}"


def _check_data(path: str) -> Iterator[str]:
    if is_builtin(path):
        yield from _check_builtin(path)
    elif is_verifiers(path):
        yield from _check_environment(path)
    elif not Path(path).exists() and (path.endswith(_DATA_SUFFIXES) or not _HUB_DATA.fullmatch(path)):
        yield f"no such file or folder, and no data set's name on the hub: {path!r}"


def _check_builtin(path: str) -> Iterator[str]:
    if path.partition(":")[2] not in TASKS:
        yield f"there is no {path}; there is: {_builtin_names()}"


def _builtin_names() -> str:
    return ", ".join(f"builtin:{name}" for name in TASKS)


def _check_environment(name: str) -> Iterator[str]:
    if not ID.fullmatch(environment_id(name)):
        yield f"must be {PREFIX}ID, with the id of an environment, got {name!r}"


def _check_class(reference: str) -> Iterator[str]:
    if is_verifiers(reference):
        yield from _check_environment(reference)
        return
    yield from (message.replace(":function", ":Class") for message in _check_function(reference))


def _check_function(reference: str) -> Iterator[str]:
    place, _, function = reference.rpartition(":")
    is_file = place.endswith(".py")
    if is_builtin(reference):
        if reference not in BUILTIN_FUNCTIONS:
            yield f"there is no {reference}; there is: {', '.join(BUILTIN_FUNCTIONS)}"
    elif not function.isidentifier() or not (is_file or _MODULE.fullmatch(place)):
        yield f"must be module:function or path/to/file.py:function, got {reference!r}"
    elif is_file and not Path(place).is_file():
        yield f"no such file: {place!r}"


def _check_url(url: str) -> Iterator[str]:
    if not _URL.fullmatch(url):
        yield f"must begin with http:// or https:// and name a host, got {url!r}"
