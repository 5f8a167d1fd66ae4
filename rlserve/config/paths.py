"""Paths in a configuration: ``~`` is the home folder, and what is on this machine is named from its root.

So a run can be taken up from any folder, and workers, whose working folder is another, find what is meant.
"""

from __future__ import annotations

import os
import sys
import sysconfig
from collections.abc import Callable, Mapping
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

from rlserve.rollout.environments.verifiers.names import is_verifiers, module_of
from rlserve.rollout.rewards.config import BUILTIN_FUNCTIONS
from rlserve.tasks import BUILTIN_REWARDS

PATH_KEYS = (
    "model.path",
    "model.tokenizer_path",
    "data.path",
    "data.held_out_path",
    "reward.model_path",
    "trainer.critic_model_path",
    "reward.module_folder",
    "reward.parts.*.model_path",
    "reward.parts.*.module_folder",
    "environment.module_folder",
    "pool.notice_file",
    "cost.prices",
    "rollout.workload.trace",
    "rollout.server.access.keys_file",
    "rollout.server.admin.keys_file",
    "rollout.server.admin.profile_folder",
    "rollout.server.accounting.usage_file",
    "rollout.server.audit.path",
    "rollout.server.access.tls_certificate",
    "rollout.server.access.tls_key",
    "rollout.server.chat_template",
    "pool.pacing.model",
    "launch.env_file",
    "launch.templates",
    "output_dir",
)
"""Keys that hold a path; some may also hold a name, of the hub or built in. ``*`` stands for a name of the user's."""
_MADE_KEYS = (
    "pool.notice_file",
    "rollout.server.accounting.usage_file",
    "rollout.server.admin.profile_folder",
    "rollout.server.audit.path",
)
FUNCTION_KEYS = ("reward.function", "reward.parts.*.function", "environment.name")
"""Hold ``path/to/file.py:function`` or ``package.module:function``."""


def settle_paths(values: Mapping[str, Any], output_dir: str) -> dict[str, Any]:
    """Nested plain values with every path expanded, and absolute if it exists; ``output_dir`` is its default.

    A name and a path that leads nowhere stay as they are, for messages to show what was written.
    """
    values = {"output_dir": output_dir, **values}
    for key in PATH_KEYS:
        values = _change(values, key, _settle)
    values = _change(values, "output_dir", os.path.abspath)
    values = _change(values, "weights.folder", _settle_folder)
    for key in _MADE_KEYS:
        values = _change(values, key, _settle_folder)
    values = _change(values, "pool.notice_probe", _settle_function)
    for key in FUNCTION_KEYS:
        values = _change(values, key, _settle_function)
    return _keep_module_folders(values)


def _settle(path: str) -> str:
    expanded = os.path.expanduser(path)
    return os.path.abspath(expanded) if expanded.strip() and Path(expanded).exists() else expanded


def _settle_folder(path: str) -> str:
    """One that is made where it is not there yet."""
    return os.path.abspath(os.path.expanduser(path)) if path else path


def _settle_function(reference: str) -> str:
    place, colon, function = reference.rpartition(":")
    return f"{_settle(place)}:{function}" if colon and place.endswith(".py") else reference


def _keep_module_folders(values: dict[str, Any]) -> dict[str, Any]:
    """Note where modules of the user's lie, for processes that start in another folder or with another path."""
    environment, reward = values.get("environment"), values.get("reward")
    if isinstance(environment, Mapping):
        values = {**values, "environment": _with_module_folder(environment, "name")}
    if not isinstance(reward, Mapping):
        return values
    reward, parts = _with_module_folder(reward), reward.get("parts")
    if isinstance(parts, Mapping):
        reward["parts"] = {
            name: _with_module_folder(part) if isinstance(part, Mapping) else part for name, part in parts.items()
        }
    return {**values, "reward": reward}


def _with_module_folder(owner: Mapping[str, Any], key: str = "function") -> dict[str, Any]:
    if not isinstance(function := owner.get(key), str):
        return dict(owner)
    is_module = ":" in function and not function.rpartition(":")[0].endswith(".py")
    if not is_module or function in (*BUILTIN_REWARDS, *BUILTIN_FUNCTIONS) or owner.get("module_folder") is not None:
        return dict(owner)
    module = module_of(function) if is_verifiers(function) else function.partition(":")[0]
    return {**owner, "module_folder": _folder_of(module)}


def _folder_of(module: str) -> str | None:
    """The folder that a module lies in, or is looked for in; None if it is installed. Imports nothing."""
    spec = PathFinder.find_spec(module.partition(".")[0], [*sys.path, os.getcwd()])
    if spec is None:
        return os.getcwd()
    package = list(spec.submodule_search_locations or ())
    folder = Path(os.path.abspath(package[0] if package else spec.origin or ".")).parent
    is_installed = {"site-packages", "dist-packages"} & {*folder.parts} or folder == Path(sysconfig.get_path("stdlib"))
    return None if is_installed else str(folder)


def _change(values: Mapping[str, Any], key: str, convert: Callable[[str], str]) -> dict[str, Any]:
    """Nested plain values with the text at a dotted key converted, if there is one."""
    first, _, rest = key.partition(".")
    changed = dict(values)
    for name in values if first == "*" else (first,):
        if rest and isinstance(values.get(name), Mapping):
            changed[name] = _change(values[name], rest, convert)
        elif not rest and isinstance(values.get(name), str):
            changed[name] = convert(values[name])
    return changed
