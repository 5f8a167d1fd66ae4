"""A JSON document: one list of objects, over as many lines as it likes."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from rlserve.errors import DataError
from rlserve.rollout.dataset.base import BadRowError, Table
from rlserve.rollout.dataset.json_text import DECODER, decode_utf8, parse_object

_SPACE = re.compile(r"[ \t\n\r]*")


def is_document(path: Path) -> bool:
    """Whether a ``.json`` file begins as a list does; else it holds one object a line.

    Raises:
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        return file.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"[")


class JsonDocument(Table):
    """The elements of the list."""

    def __init__(self, path: Path) -> None:
        """
        Raises:
            OSError: the file cannot be read.
            DataError: it is not one list.
        """
        self._path = path
        lines = path.read_bytes().removeprefix(b"\xef\xbb\xbf").split(b"\n")
        self._text = "\n".join(self._decoded(line, number) for number, line in enumerate(lines, start=1))
        self._spans = np.array(list(self._elements()), dtype=np.int64).reshape(-1, 3)  # first character, end, line

    def __len__(self) -> int:
        return len(self._spans)

    def place(self, index: int) -> str:
        return f"{self._path}:{self._spans[index, 2]}"

    def row(self, index: int) -> Mapping[str, Any]:
        start, end, _ = self._spans[index].tolist()
        return parse_object(self._text[start:end])

    def _decoded(self, line: bytes, number: int) -> str:
        try:
            return decode_utf8(line)
        except BadRowError as error:
            raise DataError(f"{self._path}:{number}: {error}") from error

    def _elements(self) -> Iterator[tuple[int, int, int]]:
        line, counted = 1, 0
        place = self._skip_space(self._skip_space(0) + 1)
        if self._text[place : place + 1] == "]":
            return
        while True:
            line, counted = line + self._text.count("\n", counted, place), place
            end = self._end_of_element(place, line)
            yield place, end, line
            place = self._skip_space(end)
            if self._text[place : place + 1] == "]":
                break
            if self._text[place : place + 1] != ",":
                raise self._error(place, "expecting ',' or ']' after an element of the list")
            place = self._skip_space(place + 1)
        if (rest := self._skip_space(place + 1)) < len(self._text):
            raise self._error(rest, "something follows the list")

    def _end_of_element(self, place: int, line: int) -> int:
        try:
            return DECODER.raw_decode(self._text, place)[1]
        except json.JSONDecodeError as error:
            raise self._error(error.pos, error.msg) from error
        except RecursionError as error:
            raise self._error(place, "nested too deeply") from error
        except BadRowError as error:
            raise DataError(f"{self._path}:{line}: {error}") from error

    def _skip_space(self, place: int) -> int:
        match = _SPACE.match(self._text, place)
        assert match is not None, "the pattern matches nothing too"
        return match.end()

    def _error(self, place: int, what: str) -> DataError:
        line = self._text.count("\n", 0, place) + 1
        column = place - self._text.rfind("\n", 0, place)
        return DataError(f"{self._path}:{line}: not valid JSON: {what} at column {column}")
