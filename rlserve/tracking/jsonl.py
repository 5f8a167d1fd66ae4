"""JSON lines: the form of everything that is written down while the run goes on.

A line is flushed as soon as it is whole, so a killed run leaves at most one unfinished line at the end; writers cut it
off before they go on, readers pass over it. Numbers that JSON does not know (NaN, infinity) are written as null.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rlserve.errors import DataError
from rlserve.tracking.base import Sink

Line = Mapping[str, Any]
"""One line, as it was read."""
END_BYTES = 1 << 18
"""Read of a file of which only the beginning or the end is wanted."""


def to_json_line(record: Mapping[str, object]) -> str:
    """One line with its line break; strict JSON, non-finite numbers become null."""
    return json.dumps(_without_non_finite(record), allow_nan=False, ensure_ascii=False) + "\n"


def _without_non_finite(value: Any) -> Any:
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _without_non_finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_non_finite(item) for item in value]
    return value


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """All whole lines of a file; none if there is no file.

    Raises:
        DataError: a whole line is no JSON object; names the file and the line.
    """
    if not path.exists():
        return []
    return _parse(path, path.read_bytes())


def read_first_json_lines(path: Path) -> list[dict[str, Any]]:
    """The whole lines at the beginning of a file, of at most :data:`END_BYTES`; none if there is no file.

    Raises:
        DataError: as for :func:`read_json_lines`.
    """
    if not path.exists():
        return []
    with path.open("rb") as file:
        return _parse(path, file.read(END_BYTES))


def read_last_json_lines(path: Path, *, also: tuple[str, ...] = ()) -> list[dict[str, Any]]:
    """The whole lines at the end of a file, of at most :data:`END_BYTES`; none if there is no file.

    Of the lines before, those that begin with one of ``also`` come first.

    Raises:
        DataError: as for :func:`read_json_lines`; lines are counted from where reading began.
    """
    if not path.exists():
        return []
    with path.open("rb") as file:
        start = max(file.seek(0, os.SEEK_END) - END_BYTES, 0)
        file.seek(max(start - 1, 0))
        if start > 0:
            file.readline()  # the rest of a line, unless one ends right here
        begin, end = file.tell(), file.read()
        if not also:
            return _parse(path, end)
        file.seek(0)
        beginnings = tuple(each.encode("utf-8") for each in also)
        early = [line for line in file.read(begin).splitlines(keepends=True) if line.startswith(beginnings)]
        return _parse(path, b"".join(early) + end)


def _parse(path: Path, content: bytes) -> list[dict[str, Any]]:
    records: list[dict[str, Any]] = []
    whole_lines = content.decode("utf-8", errors="replace").split("\n")[:-1]
    for number, line in enumerate(whole_lines, start=1):
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(f"{path}:{number}: is not JSON: {error}") from error
        if not isinstance(record, dict):
            raise DataError(f"{path}:{number}: must be a JSON object, got {line[:60]}")
        records.append(record)
    return records


class JsonLinesWriter:
    """Appends records to a file, one line each, flushed at once; cuts an unfinished last line off first."""

    def __init__(self, path: Path) -> None:
        _cut_unfinished_line(path)
        self._file = path.open("a", encoding="utf-8")

    def write(self, record: Mapping[str, object]) -> None:
        self._file.write(to_json_line(record))
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def _cut_unfinished_line(path: Path) -> None:
    if not path.exists():
        return
    content = path.read_bytes()
    whole_bytes = content.rfind(b"\n") + 1
    if whole_bytes < len(content):
        os.truncate(path, whole_bytes)


def drop_steps(path: Path, first_step: int) -> None:
    """Drop the lines from ``first_step`` on from a file whose lines have a ``step``; the file need not exist."""
    kept = [record for record in read_json_lines(path) if record["step"] < first_step]
    temporary = path.with_suffix(".tmp")
    temporary.write_text("".join(map(to_json_line, kept)), encoding="utf-8")
    temporary.replace(path)


class JsonlSink(Sink):
    """``metrics.jsonl``: one line for each call of ``log``, ``{"step": 3, "actor/pg_loss": 0.1, …}``.

    ``resumed_step`` is the first step that a resumed run does again: lines from that step on belong to work that the
    checkpoint does not hold, and are dropped, so that every step stands in the file once.
    """

    name = "metrics.jsonl"

    def __init__(self, path: Path, resumed_step: int | None = None) -> None:
        if resumed_step is not None:
            drop_steps(path, resumed_step)
        self._writer = JsonLinesWriter(path)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self._writer.write({"step": step, **metrics})

    def close(self, exit_code: int) -> None:
        self._writer.close()
