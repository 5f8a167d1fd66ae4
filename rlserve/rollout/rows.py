"""Reading the data set: rows of prompt and reference answer, checked before any process of a run is started.

Everything wrong with the data is one ``DataError`` that names the file and the line, or the row, and what to do.
"""

from __future__ import annotations

import json
import logging
import reprlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from rlserve.errors import DataError
from rlserve.rollout.columns import Columns
from rlserve.rollout.config import DataConfig

if TYPE_CHECKING:
    from datasets import Dataset

logger = logging.getLogger(__name__)

FILE_BUILDERS = {".jsonl": "json", ".json": "json", ".parquet": "parquet"}
"""Builder of the ``datasets`` library by suffix."""

STRING_TYPES = ("string", "large_string")
NUMBER_TYPES = ("int", "uint", "float", "null")

HELD_OUT_SEED = 20240229
"""Which rows are set aside does not depend on the run's seed, so that runs are scored on the same prompts."""


@dataclass(frozen=True, kw_only=True)
class PromptRow:
    """One row of the data set. ``row`` counts from 0 in the data as loaded."""

    row: int
    prompt: str
    answer: str | None
    columns: Columns


class PromptRows:
    """Some rows of a data set, read on demand (memory-mapped)."""

    def __init__(self, dataset: Dataset, rows: NDArray[np.int64], config: DataConfig) -> None:
        """``rows`` are numbers of rows of ``dataset``; ``config`` names the columns."""
        self._dataset = dataset
        self._rows = rows
        self._prompt_field = config.prompt_field
        self._answer_field = config.answer_field

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> PromptRow:
        row = int(self._rows[index])
        values = self._dataset[row]
        answer = None if self._answer_field is None else values[self._answer_field]
        return PromptRow(
            row=row,
            prompt=values[self._prompt_field],
            answer=None if answer is None else str(answer),
            columns=Columns(values),
        )


def load_rows(config: DataConfig) -> tuple[PromptRows, PromptRows]:
    """The rows to train on and the held-out rows, which are disjoint.

    Raises:
        DataError: the data cannot be read, a column is missing or has the wrong type, or there are too few rows.
    """
    dataset = _load_checked(config.path, config.split, config)
    if config.held_out_path is None:
        if config.num_held_out >= len(dataset):
            raise DataError(
                f"{config.path}: holds {len(dataset)} prompts, of which data.num_held_out={config.num_held_out} would "
                f"be set aside for scoring and none left to train on; lower it or name data.held_out_path"
            )
        order = np.random.default_rng(HELD_OUT_SEED).permutation(len(dataset))
        held_out_rows = np.sort(order[: config.num_held_out])
        train_rows = np.sort(order[config.num_held_out :])
        held_out_dataset = dataset
    else:
        held_out_dataset = _load_checked(config.held_out_path, config.held_out_split, config)
        held_out_rows = np.arange(len(held_out_dataset))
        train_rows = np.arange(len(dataset))
    return PromptRows(dataset, train_rows, config), PromptRows(held_out_dataset, held_out_rows, config)


def _load_checked(path: str, split: str, config: DataConfig) -> Dataset:
    fields = [config.prompt_field] if config.answer_field is None else [config.prompt_field, config.answer_field]
    dataset = _load(path, split)
    if len(dataset) == 0:
        raise DataError(f"{path}: holds no rows (split {split!r})")
    for field, key in zip(fields, ("prompt_field", "answer_field"), strict=False):
        if field not in dataset.column_names:
            remedy = " (null where there is none)" if key == "answer_field" else ""
            raise DataError(
                f"{path}: has no column {field!r}, only {', '.join(map(repr, dataset.column_names))}; "
                f"set data.{key} to one of them{remedy}"
            )
    _check_prompts(dataset, path, config.prompt_field)
    if config.answer_field is not None:
        _check_answers(dataset, path, config.answer_field)
    logger.info("%s: %d prompts", path, len(dataset))
    return dataset


def _load(path: str, split: str) -> Dataset:
    """Load a file, a folder or a hub name through the ``datasets`` library."""
    import datasets

    datasets.disable_progress_bars()
    local = Path(path).expanduser()
    looks_local = local.suffix in FILE_BUILDERS or path.startswith((".", "/", "~"))
    if looks_local and not local.exists():
        raise DataError(f"{path}: no such file or folder (from {Path.cwd()})")
    if local.is_file() and local.suffix not in FILE_BUILDERS:
        raise DataError(f"{path}: not a {', '.join(FILE_BUILDERS)} file")
    name, _, subset = path.partition(":")
    try:
        if local.is_file():
            return datasets.load_dataset(FILE_BUILDERS[local.suffix], data_files=str(local), split="train")
        if local.is_dir():
            return datasets.load_dataset(str(local), split=split)
        return datasets.load_dataset(name, subset or None, split=split)
    except (datasets.exceptions.DatasetsError, OSError, ValueError, StopIteration) as error:
        _explain_json(_json_files(local), prompt_field=None)
        what = str(error.__cause__ or error) or "there is nothing in it"
        raise DataError(f"{path}: cannot be loaded (split {split!r}): {what}") from error


def _check_prompts(dataset: Dataset, path: str, field: str) -> None:
    """Every prompt is a string."""
    nulls = np.flatnonzero(dataset.data.column(field).is_null())
    if _type_name(dataset, field) in STRING_TYPES and len(nulls) == 0:
        return
    _explain_json(_json_files(Path(path).expanduser()), field)
    if len(nulls) > 0:
        raise DataError(f"{path}: row {nulls[0]} has no {field!r}")
    raise DataError(
        f"{path}: column {field!r} must hold strings, but holds {dataset.features[field]}; "
        f"set data.prompt_field to a column of plain text"
    )


def _check_answers(dataset: Dataset, path: str, field: str) -> None:
    """Every answer is a string or null, or every answer is a number or null.

    Of a column that mixes strings and numbers, the ``datasets`` library turns the one into the other.
    """
    type_name = _type_name(dataset, field)
    if type_name not in STRING_TYPES and not type_name.startswith(NUMBER_TYPES):
        raise DataError(
            f"{path}: column {field!r} must hold only strings or only numbers, but holds {dataset.features[field]}; "
            f"set data.answer_field to another column, or to null where there is none"
        )


def _type_name(dataset: Dataset, field: str) -> str:
    """The Arrow type of a column, or an empty string for a nested one."""
    return getattr(dataset.features[field], "dtype", None) or ""


def _json_files(path: Path) -> Sequence[Path]:
    files = sorted(path.rglob("*")) if path.is_dir() else [path]
    return [file for file in files if FILE_BUILDERS.get(file.suffix) == "json" and file.is_file()]


def _explain_json(files: Sequence[Path], prompt_field: str | None) -> None:
    """Raise a DataError for the first record in ``files`` that is no JSON object, or (where a field is given) one
    without a string under it. The ``datasets`` library names neither file nor line."""
    for file in files:
        text = file.read_text(encoding="utf-8", errors="replace")
        is_document = file.suffix == ".json" and not isinstance(_parse(text.lstrip().partition("\n")[0]), dict)
        find_problem = _document_problem if is_document else _lines_problem
        problem = find_problem(text, prompt_field)
        if problem is not None:
            raise DataError(f"{file}:{problem}")


def _lines_problem(text: str, prompt_field: str | None) -> str | None:
    """``line: what`` of the first bad line of JSON Lines, or None."""
    for number, line in enumerate(text.split("\n"), start=1):
        problem = _record_problem(_parse(line), prompt_field) if line.strip() else None
        if problem is not None:
            return f"{number}: {problem}"
    return None


def _document_problem(text: str, prompt_field: str | None) -> str | None:
    """``line: what``, or ``record number: what``, of the first bad thing in one JSON document, or None."""
    document = _parse(text)
    if isinstance(document, json.JSONDecodeError):
        return f"{document.lineno}: {_record_problem(document, prompt_field)}"
    for number, record in enumerate(document if isinstance(document, list) else ()):
        problem = _record_problem(record, prompt_field)
        if problem is not None:
            return f" record {number}: {problem}"
    return None


def _record_problem(record: Any, prompt_field: str | None) -> str | None:
    if isinstance(record, json.JSONDecodeError):
        return f"not valid JSON: {record.msg} at column {record.colno}"
    if not isinstance(record, dict):
        return f"must be a JSON object, got {_described(record)}"
    if prompt_field is not None and not isinstance(record.get(prompt_field), str):
        return f"{prompt_field!r} must be a string, got {_described(record.get(prompt_field))}"
    return None


def _parse(text: str) -> Any:
    """The JSON value, or the error as a value."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        return error


def _described(value: Any) -> str:
    return f"{type(value).__name__} {reprlib.repr(value)}"
