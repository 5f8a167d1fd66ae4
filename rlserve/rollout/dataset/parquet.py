"""Parquet files, by the types that they declare."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet

from rlserve.errors import DataError
from rlserve.rollout.dataset.arrow import ArrowTable
from rlserve.rollout.dataset.base import Table


def open_parquet(path: Path) -> Table:
    """
    Raises:
        OSError: the file cannot be read.
        DataError: it is no Parquet file.
    """
    try:
        with path.open("rb") as file:  # a path of our own opening: no character of it has a meaning
            return ArrowTable(str(path), pyarrow.parquet.ParquetFile(file).read())
    except pa.ArrowException as error:
        raise DataError(f"{path}: not a Parquet file that can be read: {' '.join(str(error).split())}") from error
