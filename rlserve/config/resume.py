"""Taking up a run where it stopped: which folder, and what may change."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rlserve.config.keys import flatten
from rlserve.config.loading import LoadedConfig, load
from rlserve.config.overrides import OVERRIDE_SOURCE, parse_overrides
from rlserve.errors import ConfigurationError, Problem, UserError

CONFIG_FILE = "config.yaml"
"""In the folder of a run: its resolved configuration."""
CHANGEABLE_KEYS = ("num_steps", "tracking", "cost", "launch", "pool", "manager")
"""What may differ when a run goes on: nothing that its past was computed with."""


def find_run(run: str, output_dir: str) -> Path:
    """The folder of a run, given as a folder, or by its name under ``output_dir`` (``latest`` is one).

    Raises:
        UserError: there is none.
    """
    for folder in (Path(run).expanduser(), Path(output_dir) / run):
        if (folder / CONFIG_FILE).is_file():
            return folder.resolve()
    names = ", ".join(sorted(path.parent.name for path in Path(output_dir).glob(f"*/{CONFIG_FILE}"))) or "none"
    raise UserError(f"no run {run!r} to resume: no {CONFIG_FILE} in {run} or {output_dir}/{run}; runs there: {names}")


def load_run(folder: Path, overrides: Sequence[str], *, discovered: Mapping[str, int] | None = None) -> LoadedConfig:
    """Load the configuration that a run was started with, changed by ``overrides`` of :data:`CHANGEABLE_KEYS`.

    Raises:
        ConfigurationError: an override of anything else, or what :func:`load` finds.
    """
    parsed, problems = parse_overrides(overrides)
    may = f"{', '.join(CHANGEABLE_KEYS[:-1])} and {CHANGEABLE_KEYS[-1]}"
    refused = [
        Problem(override.key, f"cannot change when a run is resumed; only {may} can", OVERRIDE_SOURCE)
        for override in parsed
        if not _may_change(override.key)
    ]
    if problems or refused:
        raise ConfigurationError([*problems, *refused])
    return load(str(folder / CONFIG_FILE), overrides, discovered=discovered)


def load_again(folder: Path, given: LoadedConfig, overrides: Sequence[str]) -> LoadedConfig:
    """The same for a command that may have begun the run: of ``overrides``, which are part of ``given``, those change
    nothing that say what the run has already.

    Raises:
        ConfigurationError: as :func:`load_run` does.
    """
    differing = differing_keys(load(str(folder / CONFIG_FILE)).resolved, given.resolved)

    def says_new(key: str) -> bool:
        return _may_change(key) or any(f"{each}.".startswith(f"{key.replace('/', '.')}.") for each in differing)

    own = ("name", "output_dir")  # by which the folder was found
    keys = {word: word.partition("=")[0] for word in overrides}
    new = [word for word, key in keys.items() if key not in own and says_new(key)]
    return load_run(folder, new)


def _may_change(key: str) -> bool:
    return key.split(".")[0].split("/")[0] in CHANGEABLE_KEYS


def differing_keys(saved: Mapping[str, Any], given: Mapping[str, Any]) -> tuple[str, ...]:
    """Dotted keys whose values differ between two resolved configurations, the run's name apart."""
    old, new = dict(flatten(saved)), dict(flatten(given))
    return tuple(key for key in old | new if key != "name" and old.get(key) != new.get(key))
