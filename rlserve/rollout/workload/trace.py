"""Lengths from a file. Two forms, in tokens of the modelled model:

- one number a line, each an answer: a prompt group takes as many as it has samples;
- one line of JSON a prompt group: ``[812, 930, …]``, or ``{"lengths": [812, 930, …], "kept": true}``, where ``kept``
  says whether the group may be trained on. It is said of all groups, or of none.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from rlserve.errors import DataError


@dataclass(frozen=True, kw_only=True)
class Trace:
    """What a file says."""

    groups: tuple[tuple[float, ...], ...]
    """Lengths by line."""
    kept: tuple[bool, ...] = ()
    """By line; empty where the trace does not say it."""

    @cached_property
    def lengths(self) -> tuple[float, ...]:
        """Of all answers."""
        return tuple(length for group in self.groups for length in group)

    @property
    def is_grouped(self) -> bool:
        """Whether a line is a prompt group."""
        return any(len(group) > 1 for group in self.groups) or bool(self.kept)

    def group(self, position: int, num_samples: int, *, seed: int) -> Sequence[float]:
        """Lengths of the group at ``position``. A line of more or fewer than ``num_samples`` is cut, or begun anew."""
        if self.is_grouped:
            own = self.groups[self._line(position, seed)]
            return [own[index % len(own)] for index in range(num_samples)]
        order = _order(len(self.lengths), seed)
        first = position * num_samples
        return [self.lengths[order[(first + index) % len(order)]] for index in range(num_samples)]

    def keeps(self, position: int, *, seed: int) -> bool:
        """Whether the trace says that the group at ``position`` may be trained on."""
        return self.kept[self._line(position, seed)]

    def _line(self, position: int, seed: int) -> int:
        order = _order(len(self.groups), seed)
        return order[position % len(order)]


@lru_cache(maxsize=8)
def _order(number: int, seed: int) -> tuple[int, ...]:
    order = list(range(number))
    if seed:
        random.Random(f"{seed} trace").shuffle(order)
    return tuple(order)


def read_trace(path: Path) -> Trace:
    """Read a trace file.

    Raises:
        DataError: it cannot be read, is empty, or a line is neither a number above 0 nor a group of them.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    groups, kept = list[tuple[float, ...]](), list[bool]()
    for number, line in enumerate(lines, start=1):
        if line.strip():
            lengths, is_kept = _group(line.strip(), f"line {number} of {path}")
            groups.append(lengths)
            kept += () if is_kept is None else (is_kept,)
    if not groups:
        raise DataError(f"{path} has no lengths: one number of tokens a line, or one prompt group")
    if len(kept) not in (0, len(groups)):
        raise DataError(f"{path}: `kept` is said of {len(kept)} of {len(groups)} groups; say it of all or of none")
    return Trace(groups=tuple(groups), kept=tuple(kept))


def _group(text: str, where: str) -> tuple[tuple[float, ...], bool | None]:
    try:
        found: Any = json.loads(text)
    except json.JSONDecodeError:
        found = None
    kept = None
    if isinstance(found, dict):
        kept, found = found.get("kept"), found.get("lengths")
    lengths = found if isinstance(found, list) else [found]
    if not lengths or not all(_is_length(length) for length in lengths):
        raise DataError(f"{where} must be a number above 0, or a group of such numbers, got {text[:40]!r}")
    if kept is not None and type(kept) is not bool:
        raise DataError(f"{where}: kept must be true or false")
    return tuple(float(length) for length in lengths), kept


def _is_length(value: object) -> bool:
    return type(value) in (int, float) and 0 < value < math.inf  # type: ignore[operator]
