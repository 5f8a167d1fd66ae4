"""From a path and overrides to a checked configuration, or to everything that is wrong with it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rlserve.config.build import build, join_key
from rlserve.config.checks import check_parts
from rlserve.config.compose import compose
from rlserve.config.dump import as_plain
from rlserve.config.locate import locate
from rlserve.config.references import check_references
from rlserve.config.tree import RunConfig
from rlserve.errors import ConfigurationError
from rlserve.pool.discovery import discover_machine


@dataclass(frozen=True, kw_only=True)
class LoadedConfig:
    """A configuration that is fit to run."""

    config: RunConfig
    resolved: dict[str, Any]
    """The same as plain data, every default written out."""
    source: Path
    """The file that it was loaded from, absolute."""


def load(path: str, overrides: Sequence[str] = (), *, discovered: Mapping[str, int] | None = None) -> LoadedConfig:
    """Load, compose and check a configuration. Starts nothing, imports no torch and no one's code.

    Args:
        path: a YAML file, or one of those that come with rlserve (``conf/rlhf.yaml``).
        overrides: ``key=value`` or ``group=choice``, in Hydra's grammar.
        discovered: accelerators of this machine by type; None looks.

    Raises:
        ConfigurationError: all problems at once, each with the file it comes from, or ``override``.
    """
    file = locate(path)
    composed = compose(file, overrides)
    config, tree_problems = build(RunConfig, composed.values)
    known = {problem.key for problem in composed.problems}
    problems = [*composed.problems, *(problem for problem in tree_problems if problem.key not in known)]
    problems += check_references(dict(flatten(composed.values)))
    if config is not None and not problems:
        problems += check_parts(config, discover_machine() if discovered is None else discovered)
    if problems or config is None:
        raise ConfigurationError([replace(item, source=item.source or composed.source(item.key)) for item in problems])
    return LoadedConfig(config=config, resolved=as_plain(config), source=file.path)


def flatten(values: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Dotted keys and values of all leaves of nested mappings; a list is a leaf."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from ((join_key(name, key), leaf) for key, leaf in flatten(value))
        else:
            yield str(name), value
