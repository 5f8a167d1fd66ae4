"""Finds what a path or a name stands for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from rlserve.errors import DataError
from rlserve.rollout.dataset.base import JoinedTable, Table
from rlserve.rollout.dataset.hub import is_saved, open_hub, open_saved
from rlserve.rollout.dataset.json_document import JsonDocument, is_document
from rlserve.rollout.dataset.json_lines import JsonLines
from rlserve.rollout.dataset.parquet import open_parquet
from rlserve.rollout.dataset.split_files import files_of_split

OPENERS: Mapping[str, Callable[[Path], Table]] = {
    ".jsonl": JsonLines,
    ".json": lambda path: JsonDocument(path) if is_document(path) else JsonLines(path),
    ".parquet": open_parquet,
}
"""The kinds of files that are read, by suffix."""


def open_table(path: str, split: str) -> Table:
    """The rows of a file, of one split of a folder, or of a data set on the hub. A path is taken as it is: characters
    that a shell would expand stand for themselves.

    Raises:
        DataError: there is nothing that can be read.
    """
    local = Path(path).expanduser()
    if local.is_file():
        return _open_file(local)
    if local.is_dir():
        if is_saved(local):
            return open_saved(local, split)
        return JoinedTable([_open_file(file) for file in files_of_split(local, split, tuple(OPENERS))])
    if looks_local(path):
        raise DataError(f"{path}: no such file or folder (from {Path.cwd()})")
    return open_hub(path, split)


def looks_local(path: str) -> bool:
    """Whether a path can only mean something on this machine; else it may be the name of a data set on the hub."""
    local = Path(path).expanduser()
    return local.exists() or local.suffix in OPENERS or path.startswith((".", "/", "~"))


def _open_file(path: Path) -> Table:
    if path.suffix not in OPENERS:
        raise DataError(f"{path}: not a {', '.join(OPENERS)} file")
    try:
        table = OPENERS[path.suffix](path)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error
    if len(table) == 0:
        raise DataError(f"{path}: holds no rows")
    return table
