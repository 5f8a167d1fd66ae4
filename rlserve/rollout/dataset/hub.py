"""Data sets of the ``datasets`` library: by their name on the hub, or saved to a folder by ``save_to_disk``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rlserve.errors import DataError
from rlserve.rollout.dataset.arrow import ArrowTable
from rlserve.rollout.dataset.base import Table


def is_saved(folder: Path) -> bool:
    """Whether ``save_to_disk`` wrote the folder."""
    return any((folder / name).is_file() for name in ("state.json", "dataset_dict.json"))


def open_saved(folder: Path, split: str) -> Table:
    """
    Raises:
        DataError: it cannot be read, or has no such split.
    """
    import datasets

    try:
        found = datasets.load_from_disk(str(folder))
    except (OSError, ValueError) as error:
        raise DataError(f"{folder}: cannot be loaded: {_one_line(error)}") from error
    if not isinstance(found, datasets.DatasetDict):
        return _table(str(folder), found)
    if split not in found:
        raise DataError(f"{folder}: has no split {split!r}, only {', '.join(map(repr, found))}")
    return _table(str(folder), found[split])


def open_hub(name: str, split: str) -> Table:
    """``NAME`` or ``NAME:SUBSET``.

    Raises:
        DataError: there is no such data set, or it cannot be reached.
    """
    import datasets

    datasets.disable_progress_bars()
    path, _, subset = name.partition(":")
    try:
        return _table(name, datasets.load_dataset(path, subset or None, split=split))
    except (datasets.exceptions.DatasetsError, OSError, ValueError) as error:
        raise DataError(
            f"{name}: cannot be loaded from the hub (split {split!r}): {_one_line(error.__cause__ or error)}"
        ) from error


def _table(name: str, dataset: Any) -> Table:
    return ArrowTable(name, dataset.with_format("arrow")[:])


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())
