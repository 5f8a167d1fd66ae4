"""The columns of one row of the data set, for the reward to read."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any


class Columns(Mapping[str, Any]):
    """Column name to value, read only: all samples of a prompt share the row, so a list or a dict is handed out as a
    copy, and what one reward does to it is not seen by the next."""

    def __init__(self, values: Mapping[str, Any] | None = None) -> None:
        """``values`` are plain data: text, numbers, true or false, None, lists and dicts of them."""
        self._values = dict(values or {})

    def __getitem__(self, name: str) -> Any:
        return copy.deepcopy(self._values[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        return f"Columns({self._values!r})"
