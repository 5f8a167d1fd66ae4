"""Rows of a JSONL file, with the places of what is wrong in them."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlserve.bench.prompts.base import Prompt
from rlserve.bench.workloads.base import Message
from rlserve.errors import DataError


@dataclass(frozen=True)
class Row:
    """One line: an object, and where it stands."""

    fields: dict[str, Any]
    where: str

    def whole_number(self, *names: str, at_least: int = 1) -> int | None:
        """The first of these keys that the row has, or None.

        Raises:
            DataError: it is no whole number, or too small.
        """
        for name in names:
            if (value := self.fields.get(name)) is not None:
                if type(value) is not int or value < at_least:
                    raise self.error(f"{name} must be a whole number of at least {at_least}, got {value!r}")
                return value
        return None

    def milliseconds(self, name: str) -> float:
        """A time.

        Raises:
            DataError: the row has none, or one before 0.
        """
        value = self.fields.get(name)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
            raise self.error(f"{name} must be milliseconds from 0 on, got {value!r}")
        return value

    def prompt(self) -> Prompt | None:
        """``prompt``: text, or token ids.

        Raises:
            DataError: it is neither, or empty.
        """
        value = self.fields.get("prompt")
        if value is None or (isinstance(value, str) and value):
            return value
        if isinstance(value, list) and value and all(type(id_) is int and id_ >= 0 for id_ in value):
            return tuple(value)
        raise self.error("prompt must be text or token ids, and not empty")

    def messages(self) -> tuple[Message, ...]:
        """``messages``, or none.

        Raises:
            DataError: they are no list of objects with a role.
        """
        value = self.fields.get("messages", [])
        if not isinstance(value, list) or not all(isinstance(each, dict) and "role" in each for each in value):
            raise self.error("messages must be a list of objects with role and content")
        return tuple(value)

    def error(self, message: str) -> DataError:
        """To be raised."""
        return DataError(f"{self.where}: {message}")


def read_rows(path: Path) -> list[Row]:
    """All lines that are not blank.

    Raises:
        DataError: the file cannot be read, has no lines, or a line is no JSON object.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    rows = []
    for number, line in enumerate(lines, start=1):
        if line.strip():
            rows.append(Row(_object(line, where := f"{path}:{number}"), where))
    if not rows:
        raise DataError(f"{path} has no lines")
    return rows


def _object(line: str, where: str) -> dict[str, Any]:
    try:
        found = json.loads(line)
    except ValueError as error:
        raise DataError(f"{where}: is no JSON: {error}") from error
    if not isinstance(found, dict):
        raise DataError(f"{where}: must be an object, got {line[:40]!r}")
    return found
