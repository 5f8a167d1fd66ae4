"""Rows of an Arrow table: what a value is follows from the type that its column declares."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pyarrow as pa

from rlserve.rollout.dataset.base import BadRowError, Number, Table
from rlserve.rollout.dataset.json_text import parse


class ArrowTable(Table):
    """A Parquet file, or a data set of the ``datasets`` library."""

    def __init__(self, name: str, table: pa.Table) -> None:
        """``name`` is what messages call it."""
        self._name = name
        self._columns = dict(zip(table.column_names, table.columns, strict=True))
        self._num_rows: int = table.num_rows

    def __len__(self) -> int:
        return self._num_rows

    def place(self, index: int) -> str:
        return f"{self._name}: row {index} (counted from 0)"

    def row(self, index: int) -> Mapping[str, Any]:
        return _Row(self._columns, index)


class _Row(Mapping[str, Any]):
    """Converts the columns that are looked at."""

    def __init__(self, columns: Mapping[str, pa.ChunkedArray], index: int) -> None:
        self._columns = columns
        self._index = index

    def __getitem__(self, name: str) -> Any:
        return _value(self._columns[name][self._index])

    def __iter__(self) -> Iterator[str]:
        return iter(self._columns)

    def __len__(self) -> int:
        return len(self._columns)


def _value(scalar: pa.Scalar) -> Any:
    """The value of a scalar, as ``dataset/base.py`` lists them."""
    kind = scalar.type
    if not scalar.is_valid or pa.types.is_null(kind):
        return None
    if pa.types.is_dictionary(kind):
        return _value(scalar.value)
    if isinstance(kind, pa.BaseExtensionType):
        return parse(scalar.value.as_py()) if kind.extension_name == "arrow.json" else _value(scalar.value)
    if pa.types.is_struct(kind):
        return {field.name: _value(scalar[place]) for place, field in enumerate(kind)}
    if pa.types.is_map(kind):
        return {str(entry["key"].as_py()): _value(entry["value"]) for entry in scalar.values}
    if pa.types.is_nested(kind) and hasattr(scalar, "values"):
        return [_value(item) for item in scalar.values]
    return _plain_value(scalar)


def _plain_value(scalar: pa.Scalar) -> Any:
    kind = scalar.type
    if pa.types.is_decimal(kind):
        return Number(f"{scalar.as_py():f}")
    if pa.types.is_floating(kind):
        return Number(str(kind.to_pandas_dtype()(scalar.as_py())))  # the shortest spelling in its own precision
    if pa.types.is_integer(kind):
        return Number(str(scalar.as_py()))
    if pa.types.is_timestamp(kind) and kind.unit == "ns":  # Python's dates have microseconds
        return scalar.cast(pa.timestamp("us", kind.tz), safe=False).as_py().isoformat()
    if pa.types.is_time64(kind) and kind.unit == "ns":
        return scalar.cast(pa.time64("us"), safe=False).as_py().isoformat()
    if pa.types.is_timestamp(kind) or pa.types.is_date(kind) or pa.types.is_time(kind):
        return scalar.as_py().isoformat()
    try:
        value = scalar.as_py()
    except UnicodeDecodeError as error:
        raise BadRowError(f"not valid UTF-8: {error.reason} after {error.start} bytes") from error
    return value if isinstance(value, str | bool | bytes) else str(value)
