"""Writing a configuration as YAML that :func:`rlserve.config.load` reads back to an equal one.

A configuration holds no secret: keys come from the environment of the process that needs them.
"""

from __future__ import annotations

import re
from dataclasses import fields, is_dataclass
from typing import Any

import yaml

from rlserve.config.tree import RunConfig

_HEADER = "# @package _global_\ndefaults: [_self_]\n\n"
"""Composes in any folder; a group chosen on the command line wins over what stands below."""
_INTERPOLATION = re.compile(r"(\\*)\$\{")


class _Dumper(yaml.SafeDumper):
    """Quotes text that OmegaConf would read as a number (``1e-5``) or break into lines, and escapes what it would
    interpolate."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    escaped = _INTERPOLATION.sub(lambda match: match[1] * 2 + "\\${", text)
    style = '"' if text[:1] in tuple("+-.0123456789") or not text.isprintable() else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", escaped, style=style)


_Dumper.add_representer(str, _represent_text)


def as_plain(config: Any) -> Any:
    """A configuration, whole or a part, as dicts, lists and scalars."""
    if is_dataclass(config):
        return {field.name: as_plain(getattr(config, field.name)) for field in fields(config)}
    if isinstance(config, dict):
        return {name: as_plain(item) for name, item in config.items()}
    if isinstance(config, tuple):
        return [as_plain(item) for item in config]
    return config


def to_yaml(config: RunConfig) -> str:
    """The whole configuration, every default written out."""
    return _HEADER + yaml.dump(as_plain(config), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)
