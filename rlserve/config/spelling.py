"""YAML as it is spelled: ``off`` is no truth value where a group's choice stands, nor ``007`` a 7 where a name does."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from hydra._internal.core_plugins.file_config_source import FileConfigSource
from hydra._internal.sources_registry import SourcesRegistry
from hydra.core.plugins import Plugins
from hydra.plugins.config_source import ConfigResult
from omegaconf import DictConfig, ListConfig, OmegaConf

_KEPT_TAGS = ("tag:yaml.org,2002:null", "tag:yaml.org,2002:merge")


class _SpellingLoader(yaml.SafeLoader):
    """Reads every scalar but null as text."""


_SpellingLoader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag in _KEPT_TAGS]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def load_spelled(path: Path) -> Any:
    """The content of a YAML file; numbers and truth values are text, as they stand there.

    Raises:
        yaml.YAMLError: it is no YAML.
    """
    with path.open(encoding="utf-8") as file:
        return yaml.load(file, _SpellingLoader)


class _SpelledChoices(FileConfigSource):
    """Files as Hydra reads them, but for choices of groups that YAML takes for numbers or truth values."""

    def load_config(self, config_path: str) -> ConfigResult:
        result = super().load_config(config_path)
        if isinstance(result.config, DictConfig) and isinstance(defaults := result.config.get("defaults"), ListConfig):
            spelled = load_spelled(Path(self.path) / self._normalize_file_name(config_path))
            read = OmegaConf.to_container(defaults, resolve=False)
            result.config.defaults = _as_spelled(read, spelled["defaults"])
        return result


@contextmanager
def choices_as_spelled() -> Iterator[None]:
    """While this is open, Hydra takes ``- tracking: off`` for the choice ``off``."""
    Plugins.instance()  # registers the sources
    sources = SourcesRegistry.instance().types
    files = sources["file"]
    sources["file"] = _SpelledChoices
    try:
        yield
    finally:
        sources["file"] = files


def _as_spelled(read: Any, spelled: Any) -> Any:
    """``read``, with ``spelled`` in the place of every number and truth value. Both are of one shape."""
    if isinstance(read, dict):
        return {key: _as_spelled(value, spelled.get(str(key))) for key, value in read.items()}
    if isinstance(read, list):
        return [_as_spelled(item, other) for item, other in zip(read, spelled, strict=True)]
    return spelled if isinstance(read, int | float) else read
