"""The contract of a data set, and what the values of its rows are.

What a value is follows from how that value is written, never from what stands in other rows:

=====================  ==================================================================================
a value is             where it comes from
=====================  ==================================================================================
``str``                text; dates and times of Parquet in ISO 8601
``Number``             a number, with its spelling
``bool``, ``None``     true, false, null
``list``, ``dict``     lists, objects, structs and maps of these
``bytes``              binary columns of Parquet
=====================  ==================================================================================
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

_MAX_DIGITS = 4000
"""Python makes no whole number of more than a few thousand digits out of text."""


@dataclass(frozen=True, slots=True)
class Number:
    """A number as it is spelled: ``1.50`` is not ``1.5``, and no whole number is too large."""

    text: str

    @property
    def value(self) -> int | float:
        """The number itself."""
        digits = self.text.removeprefix("-")
        return int(self.text) if digits.isdigit() and len(digits) <= _MAX_DIGITS else float(self.text)


class BadRowError(ValueError):
    """What is wrong with a row; whoever knows where it stands makes a ``DataError`` of it."""


def as_plain(value: Any) -> Any:
    """A value with every ``Number`` in it as an ``int`` or a ``float``."""
    if isinstance(value, Number):
        return value.value
    if isinstance(value, list):
        return [as_plain(item) for item in value]
    if isinstance(value, Mapping):
        return {key: as_plain(item) for key, item in value.items()}
    return value


class Table(ABC):
    """Rows, read on demand."""

    @abstractmethod
    def __len__(self) -> int:
        """Number of rows."""

    @abstractmethod
    def place(self, index: int) -> str:
        """Where a row stands, as a message names it: ``data.jsonl:12``."""

    @abstractmethod
    def row(self, index: int) -> Mapping[str, Any]:
        """Column name to value.

        Raises:
            BadRowError: there is no row that can be read at this place.
        """


class JoinedTable(Table):
    """Several tables, one after the other."""

    def __init__(self, tables: Sequence[Table]) -> None:
        self._tables = tuple(tables)
        self._ends = tuple(accumulate(len(table) for table in tables))

    def __len__(self) -> int:
        return self._ends[-1]

    def place(self, index: int) -> str:
        table, own_index = self._find(index)
        return table.place(own_index)

    def row(self, index: int) -> Mapping[str, Any]:
        table, own_index = self._find(index)
        return table.row(own_index)

    def _find(self, index: int) -> tuple[Table, int]:
        number = bisect_right(self._ends, index)
        return self._tables[number], index - (self._ends[number - 1] if number else 0)
