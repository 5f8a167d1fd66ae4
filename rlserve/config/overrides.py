"""Reading overrides, ``key=value`` in Hydra's grammar, all problems at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from rlserve.errors import Problem

OVERRIDE_SOURCE = "override"
"""Shown in the place of a file."""


@dataclass(frozen=True, kw_only=True)
class Override:
    """One override: a value for a key, or a choice for a group."""

    key: str
    """Dotted."""
    value: Any
    """Plain data; a string may hold an interpolation."""


def parse_overrides(texts: Sequence[str]) -> tuple[tuple[Override, ...], tuple[Problem, ...]]:
    """Read overrides; those that are refused are left out and described."""
    parser = OverridesParser.create()
    read = [_parse(parser, text) for text in texts]
    return (
        tuple(item for item in read if isinstance(item, Override)),
        tuple(item for item in read if isinstance(item, Problem)),
    )


def _parse(parser: OverridesParser, text: str) -> Override | Problem:
    def refused(message: str) -> Problem:
        return Problem(text, message, OVERRIDE_SOURCE)

    key, equals, value = text.partition("=")
    if text.startswith("+"):
        return refused(f"no key is ever added, every one has a default: write {text.lstrip('+')}")
    if text.startswith("~"):
        return refused("no key is ever taken away: give it the value that you want")
    if not equals or not key.strip():
        return refused("must be key=value")
    if key.split(".")[0].split("/")[0] == "hydra":
        return refused("Hydra's own settings have no effect here")
    try:
        parsed = parser.parse_override(text)
    except HydraException as error:
        return refused(
            f"cannot be read, {_first_line(error)}; quote a value of special characters: '{key}=\"{value}\"'"
        )
    if parsed.is_sweep_override():
        return refused(f"is a sweep, and one run has one value: write {key}=[{value}] for a list, or quote it")
    if parsed.package is not None:
        return refused("a group cannot be put elsewhere: leave out the @")
    return Override(key=parsed.key_or_group, value=parsed.value())


def _first_line(error: HydraException) -> str:
    lines = [line.strip() for line in str(error).splitlines()]
    return next(line for line in lines if line and not line.startswith("Error parsing override"))
