"""From a path and overrides to a checked configuration, or to everything that is wrong with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rlserve.config.belongings import (
    check_belongings,
    remarks_on_small_settings,
    without_generating,
    without_replaced_reward,
)
from rlserve.config.checks import check_parts
from rlserve.config.compose import Composed, compose
from rlserve.config.dump import as_plain
from rlserve.config.keys import flatten
from rlserve.config.locate import locate
from rlserve.config.paths import settle_paths
from rlserve.config.references import check_references
from rlserve.config.remarks import remarks_on
from rlserve.config.server_checks import check_server
from rlserve.config.tree import RunConfig
from rlserve.config.validation import validate
from rlserve.config.variants import without_other_variants
from rlserve.errors import ConfigurationError, Problem
from rlserve.pool.discovery import discover_machine
from rlserve.roofline.accelerators import is_cpu


@dataclass(frozen=True, kw_only=True)
class LoadedConfig:
    """A configuration that is fit to run."""

    config: RunConfig
    resolved: dict[str, Any]
    """The same as plain data, every default written out."""
    source: Path
    """The file that it was loaded from, absolute."""
    discovered: Mapping[str, int]
    """Accelerators of this machine by type, as far as the run asks for any."""
    remarks: tuple[Problem, ...] = ()
    """What is legal and can hardly be meant."""


def load(path: str, overrides: Sequence[str] = (), *, discovered: Mapping[str, int] | None = None) -> LoadedConfig:
    """Load, compose and check a configuration. Starts nothing, imports no torch and no one's code.

    Args:
        path: a YAML file, or one of those that come with rlserve (``conf/rlhf.yaml``).
        overrides: ``key=value`` or ``group=choice``, in Hydra's grammar.
        discovered: accelerators of this machine by type; None looks, if the run asks for any here.

    Raises:
        ConfigurationError: all problems at once, each with the file it comes from, or ``override``.
        PoolError: the run asks for accelerators, and the machine cannot say which there are.
    """
    file = locate(path)
    composed = compose(file, overrides)
    values = without_other_variants(without_replaced_reward(composed.values, composed), composed)
    values = without_generating(values, composed)
    values = settle_paths(values, RunConfig.output_dir)
    config, tree_problems = validate(RunConfig, values, composed.spelling)
    known = {problem.key for problem in composed.problems}
    problems = [*composed.problems, *(problem for problem in tree_problems if problem.key not in known)]
    flat = dict(flatten(values))
    problems += [*check_references(flat), *check_belongings(flat, composed)]
    if config is not None and not problems:
        discovered = _discover(config) if discovered is None else discovered
        problems += [*check_parts(config, discovered), *check_server(config)]
    if problems or config is None or discovered is None:
        raise ConfigurationError([_with_source(problem, composed) for problem in problems])
    remarks = [*remarks_on(config, discovered), *remarks_on_small_settings(flat, composed)]
    return LoadedConfig(
        config=config,
        resolved=as_plain(config),
        source=file.path,
        discovered=discovered,
        remarks=tuple(_with_source(remark, composed) for remark in remarks),
    )


def _discover(config: RunConfig) -> Mapping[str, int]:
    """Accelerators of this machine. A broken driver is nothing to a run that asks for CPU slots, or for a cluster."""
    slots = config.pool.slots
    asks_for_none = config.launch.kind != "local" or (slots != "auto" and all(is_cpu(group.type) for group in slots))
    return {} if asks_for_none else discover_machine()


def _with_source(problem: Problem, composed: Composed) -> Problem:
    return replace(problem, source=problem.source or composed.source(problem.key))
