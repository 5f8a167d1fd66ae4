"""JSON Lines: one object a line. Only the places of the lines are kept, and of large files nothing else."""

from __future__ import annotations

import os
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from rlserve.rollout.dataset.base import Table
from rlserve.rollout.dataset.json_text import decode_utf8, parse_object

MAX_BYTES_IN_MEMORY = 256 * 2**20
"""Of a larger file, each row is read when it is needed."""
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class JsonLines(Table):
    """The lines of one file that are not blank."""

    def __init__(self, path: Path) -> None:
        """
        Raises:
            OSError: the file cannot be read.
        """
        self._path = path
        self._file: BinaryIO = path.open("rb")  # stays open: a file of the same name that takes its place is not read
        if os.fstat(self._file.fileno()).st_size <= MAX_BYTES_IN_MEMORY:
            with self._file as file:
                self._file = BytesIO(file.read())
        spans, start = [], 0
        for number, line in enumerate(self._file, start=1):
            skipped = len(_BYTE_ORDER_MARK) if number == 1 and line.startswith(_BYTE_ORDER_MARK) else 0
            if line[skipped:].strip():
                spans.append((start + skipped, start + len(line), number))
            start += len(line)
        self._spans = np.array(spans, dtype=np.int64).reshape(-1, 3)  # first byte, byte after the last, line

    def __len__(self) -> int:
        return len(self._spans)

    def place(self, index: int) -> str:
        return f"{self._path}:{self._spans[index, 2]}"

    def row(self, index: int) -> Mapping[str, Any]:
        start, end, _ = self._spans[index].tolist()
        self._file.seek(start)
        return parse_object(decode_utf8(self._file.read(end - start).rstrip(b"\r\n")))
