"""Composing a file, its groups and the overrides into plain values. The only file that calls Hydra to compose.

Hydra composes the file and the choices of groups. Overrides of single keys are applied afterwards, one by one,
so that a wrong one does not hide the next, and so that keys that no YAML file mentions can be set: the tree knows
which keys there are, the files only hold what differs from its defaults.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.errors import HydraException, MissingConfigException
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from rlserve.config.keys import join_key
from rlserve.config.locate import ConfigFile
from rlserve.config.overrides import OVERRIDE_SOURCE, Override, parse_overrides
from rlserve.config.spelling import choices_as_spelled, load_spelled
from rlserve.config.tree import RunConfig
from rlserve.errors import ConfigurationError, Problem

_ABSENT = object()
_HYDRA_VERSION = "1.3"
_MAX_DEPTH = 8
"""Deeper than any configuration: only a value that refers to itself gets there."""
_GROUP_NAME = re.compile(r"[\w-]+(/[\w-]+)*")
_GLOBAL_HEADER = re.compile(r"^#\s*@package\s+_global_\s*$", re.MULTILINE)


@dataclass(frozen=True, kw_only=True)
class Composed:
    """Plain values, and where each came from."""

    values: Mapping[str, Any]
    problems: tuple[Problem, ...]
    """What is wrong already, short of checking keys, types and ranges."""
    file: ConfigFile
    override_keys: frozenset[str]
    files: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Contents of the files that took part, by shown path, the one that wins first; keys as from the root, numbers
    and truth values as they are spelled."""

    def source(self, key: str) -> str:
        """The file (or ``override``) that set a key, or set something in it; else the file that was loaded."""
        if any(_is_within(key, other) or _is_within(other, key) for other in self.override_keys):
            return OVERRIDE_SOURCE
        setting = (shown for shown, content in self.files.items() if _find(content, key) is not _ABSENT)
        return next(setting, self.file.shown)

    def is_from_group(self, key: str) -> bool:
        """Whether the file of a group set a key, rather than an override or the file that was loaded."""
        return self.source(key) not in (OVERRIDE_SOURCE, self.file.shown)

    def spelling(self, key: str) -> str | None:
        """How a file spells the value that a key has; None where no file does, or names another key's value."""
        written = _find(self.files.get(self.source(key), {}), key)
        return written if isinstance(written, str) and "${" not in written else None


def compose(file: ConfigFile, override_texts: Sequence[str], root: type[Any] = RunConfig) -> Composed:
    """Compose a configuration, whose keys are those of ``root``.

    Raises:
        ConfigurationError: the file or one of its groups cannot be read, or a group's choice does not exist;
            what is less than that comes back in ``problems``.
    """
    overrides, override_problems = parse_overrides(override_texts, root)
    problems = list(override_problems)
    content = _read(file, file.path)
    _check_header(file)
    choices = [override for override in overrides if _is_group(file, override.key)]
    single_keys = [override for override in overrides if not _is_group(file, override.key)]
    possible = [choice for choice in choices if choice.typed in file.options(choice.key)]
    problems += [_missing_choice(file, choice) for choice in choices if choice not in possible]
    config, chosen = _compose_files(file, _choice_texts(file, content, possible))
    for override in single_keys:
        problems += _apply(config, override)
    values = _to_plain(config, "", problems)
    return Composed(
        values=values,
        problems=tuple(problems),
        file=file,
        override_keys=frozenset(override.key for override in single_keys),
        files={file.shown: content} | _group_files(file, chosen),
    )


def _read(file: ConfigFile, path: Path) -> dict[str, Any]:
    """Content of one YAML file that takes part, spelled as it stands there."""
    try:
        OmegaConf.load(path)  # finds more that is wrong, such as a key that stands there twice
        content = load_spelled(path) or {}
    except (yaml.YAMLError, OmegaConfBaseException, OSError, UnicodeDecodeError) as error:
        raise ConfigurationError([_file_problem(error, file, path)]) from error
    if not isinstance(content, dict):
        raise ConfigurationError([Problem("", "must hold keys and values at its top", file.show(path))])
    return {str(key): value for key, value in content.items()}


def _check_header(file: ConfigFile) -> None:
    if "/" in file.name and not _GLOBAL_HEADER.search(file.path.read_text(encoding="utf-8")):
        folder = file.show(file.root)
        message = f"a run's file in a folder below {folder} must begin with the line: # @package _global_"
        raise ConfigurationError([Problem("", message, file.shown)])


def _is_group(file: ConfigFile, key: str) -> bool:
    return _GROUP_NAME.fullmatch(key) is not None and any((root / key).is_dir() for root in file.search_roots)


def _missing_choice(file: ConfigFile, choice: Override) -> Problem:
    """A choice that the group does not have; the file's own stands in for it, to find what else is wrong."""
    options = ", ".join(file.options(choice.key))
    message = f"no choice {choice.typed!r} of group {choice.key}; there is: {options}"
    return Problem(choice.key, f"{message} (one key is set by {choice.key}.KEY=VALUE)", OVERRIDE_SOURCE)


def _choice_texts(file: ConfigFile, content: Mapping[str, Any], choices: Sequence[Override]) -> list[str]:
    """Hydra's overrides: a group that the files' defaults lists do not name is appended to them."""
    declared = set(_declared_groups(file, content))
    return [f"{'' if choice.key in declared else '+'}{choice.key}={_quote(choice.typed)}" for choice in choices]


def _declared_groups(file: ConfigFile, content: Mapping[str, Any]) -> Iterator[str]:
    defaults = content.get("defaults")
    for entry in defaults if isinstance(defaults, list) else []:
        if isinstance(entry, dict):
            yield from (str(group).split()[-1].split("@")[0] for group in entry)
        elif entry != "_self_":
            parents = (root / f"{entry}.yaml" for root in file.search_roots)
            for parent in [path for path in parents if path.is_file()][:1]:
                yield from _declared_groups(file, _read(file, parent))


def _compose_files(file: ConfigFile, choice_texts: Sequence[str]) -> tuple[DictConfig, Mapping[str, str]]:
    """Let Hydra compose; returns the configuration and the choice of every group."""
    search_path = ",".join(_quote(f"file://{root}") for root in file.search_roots[1:])
    overrides = [f"hydra.searchpath=[{search_path}]", *choice_texts]
    try:
        with (
            warnings.catch_warnings(),
            choices_as_spelled(),
            initialize_config_dir(str(file.root), version_base=_HYDRA_VERSION),
        ):
            # Without _self_ in its defaults list, a file's own values win over its groups, as one expects.
            warnings.filterwarnings("ignore", message=".*missing `_self_`.*", category=UserWarning)
            config = hydra_compose(file.name, overrides=overrides, return_hydra_config=True)
    except MissingConfigException as error:
        raise ConfigurationError([_missing_group(error, file)]) from error
    except (HydraException, OmegaConfBaseException, yaml.YAMLError, OSError, ValueError) as error:
        raise ConfigurationError([_file_problem(error, file, file.path)]) from error
    OmegaConf.set_struct(config, False)
    chosen = {str(group): str(choice) for group, choice in config.pop("hydra").runtime.choices.items() if choice}
    return config, chosen


def _quote(text: str) -> str:
    escaped = text.replace("'", "\\'")
    return f"'{escaped}'"


def _missing_group(error: MissingConfigException, file: ConfigFile) -> Problem:
    missing, folder = str(error.missing_cfg_file), file.name.rpartition("/")[0]
    if error.options:
        return Problem("defaults", f"no {missing}; there is: {', '.join(error.options)}", file.shown)
    if folder and missing.startswith(f"{folder}/"):
        group, _, choice = missing.removeprefix(f"{folder}/").rpartition("/")
        return Problem(
            "defaults",
            f"no {missing}.yaml; a group of {file.show(file.root)} is written /{group}: {choice}",
            file.shown,
        )
    return Problem("defaults", f"no {missing}.yaml", file.shown)


def _file_problem(error: Exception, file: ConfigFile, path: Path) -> Problem:
    """What is wrong with the file at ``path``, or, if the error tells, with another one that takes part."""
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        place = f"{file.show(Path(error.problem_mark.name))}:{error.problem_mark.line + 1}"
        return Problem("", f"is no YAML: {error.problem}", place)
    if isinstance(error, OSError) and error.strerror:
        return Problem("", f"cannot be read: {error.strerror}", file.show(path))
    reason = error.__cause__ or error
    return Problem("", f"cannot be composed: {str(reason).splitlines()[0]}", file.show(path))


def _apply(config: DictConfig, override: Override) -> list[Problem]:
    try:
        OmegaConf.update(config, override.key, override.value, merge=False, force_add=True)
    except OmegaConfBaseException as error:
        return [Problem(override.key, str(error).splitlines()[0], OVERRIDE_SOURCE)]
    return []


def _to_plain(node: DictConfig | ListConfig, key: str, problems: list[Problem]) -> Any:
    """Resolve every value; one that cannot be is left out and noted (without a source) in ``problems``."""
    if key.count(".") > _MAX_DEPTH:
        problems.append(Problem(key, "refers to itself"))
        return None
    names: Sequence[Any] = range(len(node)) if isinstance(node, ListConfig) else list(node.keys())
    plain: dict[Any, Any] = {}
    for name in names:
        child_key = join_key(key, name)
        if OmegaConf.is_missing(node, name):
            problems.append(Problem(child_key, "must be given"))
            continue
        try:
            value = node[name]
        except OmegaConfBaseException as error:
            problems.append(Problem(child_key, str(error).splitlines()[0]))
            continue
        plain[name] = _to_plain(value, child_key, problems) if isinstance(value, DictConfig | ListConfig) else value
    return list(plain.values()) if isinstance(node, ListConfig) else plain


def _group_files(file: ConfigFile, chosen: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """Contents of the groups' files, put under their group unless the file is for the root."""
    contents: dict[str, dict[str, Any]] = {}
    for group, choice in reversed(list(chosen.items())):
        path = next((path for root in file.search_roots if (path := root / group / f"{choice}.yaml").is_file()), None)
        if path is None:  # a group of Hydra's own
            continue
        content = _read(file, path)
        if not _GLOBAL_HEADER.search(path.read_text(encoding="utf-8")):
            for part in reversed(group.split("/")):
                content = {part: content}
        contents[file.show(path)] = content
    return contents


def _is_within(key: str, other: str) -> bool:
    return key == other or key.startswith(f"{other}.")


def _find(content: Any, key: str) -> Any:
    """What stands at a dotted key of nested plain data, or ``_ABSENT``."""
    for part in key.split("."):
        if isinstance(content, list) and part.isdigit() and int(part) < len(content):
            content = content[int(part)]
        elif isinstance(content, dict) and part in content:
            content = content[part]
        else:
            return _ABSENT
    return content
