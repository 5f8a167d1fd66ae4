"""What an examination finds."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Level(StrEnum):
    """How bad it is."""

    GOOD = "green"
    WARNING = "yellow"
    """A run works, but slower, or without something."""
    BAD = "red"
    """A run will not work."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One line."""

    level: Level
    what: str
    """What was looked at: ``memory``."""
    text: str
    """How it is; if it is not good, what to do."""


def good(what: str, text: str) -> Finding:
    """As it should be."""
    return Finding(level=Level.GOOD, what=what, text=text)


def warning(what: str, text: str) -> Finding:
    """Something that a run can do without."""
    return Finding(level=Level.WARNING, what=what, text=text)


def bad(what: str, text: str) -> Finding:
    """Something that a run needs."""
    return Finding(level=Level.BAD, what=what, text=text)
