"""The rows of prompt and reference answer, all of them checked before any process of a run is started.

Everything wrong with the data is one ``DataError`` that names the file and the line, or the row, of the first wrong
thing, and what to do.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlserve.errors import DataError
from rlserve.rollout.columns import Columns
from rlserve.rollout.config import DataConfig
from rlserve.rollout.dataset.base import BadRowError, Table, as_plain
from rlserve.rollout.dataset.content_digest import digest, fingerprint
from rlserve.rollout.dataset.factory import open_table
from rlserve.rollout.dataset.fields import as_answer, as_prompt, find
from rlserve.rollout.groups import Answer, Message

logger = logging.getLogger(__name__)

Prompt = str | tuple[Message, ...]
"""Text, or a conversation."""

DEFAULT_NUM_HELD_OUT = 512
HELD_OUT_SHARE = 10
"""One row in so many is set aside where that is less."""
_WHOLE_WITH_POINT = re.compile(r"-?\d+\.0")
HELD_OUT_SEED = 20240229
"""Which rows are set aside does not depend on the run's seed, so that runs are scored on the same prompts."""


@dataclass(frozen=True, kw_only=True)
class PromptRow:
    """One row of the data set. ``row`` counts from 0 in the data as loaded."""

    row: int
    place: str
    """Where it stands: ``data.jsonl:12``."""
    prompt: Prompt
    answer: Answer
    columns: Columns


class DatasetRows:
    """All rows of a data set, checked; they are read on demand."""

    def __init__(self, path: str, table: Table, config: DataConfig) -> None:
        """Read and check every row; ``config`` names the columns.

        Raises:
            DataError: a row cannot be used; the first of them is named.
        """
        self.path = path
        self._table = table
        self._config = config
        self.digests = np.zeros(len(table), dtype=np.uint64)
        """[rows] of prompt and answer."""
        self.prompt_digests = np.zeros(len(table), dtype=np.uint64)
        """[rows]."""
        self.prompt_sizes = np.zeros(len(table), dtype=np.int64)
        """[rows] in characters."""
        self.first_with_roles: dict[tuple[str, ...], int] = {}
        """Of each order of roles that a conversation has, the first row; () is plain text."""
        self._check()

    def __len__(self) -> int:
        return len(self._table)

    def __getitem__(self, index: int) -> PromptRow:
        """
        Raises:
            DataError: the file was written to after it was checked.
        """
        with self._errors_at(index):
            values = self._table.row(index)
            prompt, answer = self._read(values)
            columns = Columns(as_plain(values))
        if digest(prompt, answer) != self.digests[index]:
            raise DataError(
                f"{self.place(index)}: was changed while the run reads it; write other data to a file of their own"
            )
        return PromptRow(row=index, place=self.place(index), prompt=prompt, answer=answer, columns=columns)

    def place(self, index: int) -> str:
        """Where a row stands."""
        return self._table.place(index)

    def _check(self) -> None:
        num_answers = num_pointed = 0
        for index in range(len(self._table)):
            with self._errors_at(index):
                prompt, answer = self._read(self._table.row(index))
            self.digests[index] = digest(prompt, answer)
            self.prompt_digests[index] = digest(prompt)
            self.prompt_sizes[index] = _size(prompt)
            self.first_with_roles.setdefault(_roles(prompt), index)
            num_answers += answer is not None
            num_pointed += isinstance(answer, str) and _WHOLE_WITH_POINT.fullmatch(answer) is not None
        if 0 < num_answers == num_pointed:
            logger.warning(
                "%s: every answer is a whole number with a point, like '72.0', which many programs make of whole "
                "numbers where a value is missing: a reward that compares text must expect that",
                self.path,
            )

    def _read(self, values: Mapping[str, Any]) -> tuple[Prompt, Answer]:
        config, answer = self._config, None
        found = find(values, config.prompt_field, "prompt_field")
        prompt = as_prompt(found, config.prompt_field, apply_chat_template=config.apply_chat_template)
        if config.answer_field is not None:
            answer = as_answer(find(values, config.answer_field, "answer_field"), config.answer_field)
        return prompt, answer

    @contextmanager
    def _errors_at(self, index: int) -> Iterator[None]:
        try:
            yield
        except BadRowError as error:
            raise DataError(f"{self.place(index)}: {error}") from error


class PromptRows:
    """Some rows of a data set, in an order."""

    def __init__(self, rows: DatasetRows, chosen: NDArray[np.int64]) -> None:
        """``chosen`` are numbers of rows."""
        self._rows = rows
        self._chosen = chosen

    def __len__(self) -> int:
        return len(self._chosen)

    def __getitem__(self, index: int) -> PromptRow:
        return self._rows[int(self._chosen[index])]

    @property
    def path(self) -> str:
        """What the data is called in the configuration."""
        return self._rows.path

    @property
    def digests(self) -> NDArray[np.uint64]:
        """[rows] of prompt and answer."""
        return self._rows.digests[self._chosen]

    @property
    def prompt_digests(self) -> NDArray[np.uint64]:
        """[rows] of the prompt alone."""
        return self._rows.prompt_digests[self._chosen]

    @property
    def fingerprint(self) -> tuple[str, ...]:
        """Of all prompts and answers, in order."""
        return fingerprint(self.digests)

    def place(self, index: int) -> str:
        """Where a row stands."""
        return self._rows.place(int(self._chosen[index]))

    def one_of_each_shape(self) -> list[PromptRow]:
        """A row for each order of roles that conversations have (in all of the data), and one of plain text."""
        return [self._rows[index] for index in self._rows.first_with_roles.values()]

    def longest(self, count: int) -> list[PromptRow]:
        """The rows with the longest prompts, in characters; at most ``count``."""
        sizes = self._rows.prompt_sizes[self._chosen]
        return [self[int(index)] for index in np.argsort(-sizes, kind="stable")[:count]]


def load_rows(config: DataConfig) -> tuple[PromptRows, PromptRows]:
    """The rows to train on and the held-out rows.

    Raises:
        DataError: the data cannot be read, a row cannot be used, or there are too few.
    """
    rows = _load(config.path, config.split, config)
    if config.held_out_path is None:
        train, held_out = (PromptRows(rows, chosen) for chosen in set_aside(len(rows), config))
    else:
        held_out_rows = _load(config.held_out_path, config.held_out_split, config)
        held_out = PromptRows(held_out_rows, np.arange(len(held_out_rows)))
        train = PromptRows(rows, np.arange(len(rows)))
    _warn_of_known_prompts(train, held_out)
    return train, held_out


def _load(path: str, split: str, config: DataConfig) -> DatasetRows:
    rows = DatasetRows(path, open_table(path, split), config)
    if len(rows) == 0:
        raise DataError(f"{path}: holds no rows (split {split!r})")
    logger.info("%s: %d prompts", path, len(rows))
    return rows


def set_aside(num_rows: int, config: DataConfig) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """The rows to train on and the held-out ones of one file, the same for every seed and every kind of run.

    Raises:
        DataError: there are too few rows for both.
    """
    num_held_out = _num_held_out(num_rows, config)
    order = np.random.default_rng(HELD_OUT_SEED).permutation(num_rows)
    return np.sort(order[num_held_out:]), np.sort(order[:num_held_out])


def _num_held_out(num_rows: int, config: DataConfig) -> int:
    """As many as are asked for, or as there should be of so little data."""
    if num_rows < 2:
        raise DataError(
            f"{config.path}: holds {num_rows} prompt, and one to train on and one to score are needed; "
            f"name the latter with data.held_out_path (it may be the same file)"
        )
    share = max(num_rows // HELD_OUT_SHARE, 1)
    wanted = config.num_held_out
    num_held_out = min(wanted or DEFAULT_NUM_HELD_OUT, num_rows if wanted else share)
    if num_held_out == num_rows:
        num_held_out = share
    if num_held_out < (wanted or DEFAULT_NUM_HELD_OUT):
        logger.info(
            "%s: %d of %d prompts are held out for scoring, not data.num_held_out=%d: the data is too small",
            config.path,
            num_held_out,
            num_rows,
            wanted or DEFAULT_NUM_HELD_OUT,
        )
    return num_held_out


def _warn_of_known_prompts(train: PromptRows, held_out: PromptRows) -> None:
    """A score on prompts that are trained on says little."""
    known = np.flatnonzero(np.isin(held_out.prompt_digests, train.prompt_digests))
    if len(known):
        logger.warning(
            "%d of %d held-out prompts are trained on too, so the held-out score is too good; the first: %s",
            len(known),
            len(held_out),
            held_out.place(int(known[0])),
        )


def _roles(prompt: Prompt) -> tuple[str, ...]:
    return () if isinstance(prompt, str) else tuple(message["role"] for message in prompt)


def _size(prompt: Prompt) -> int:
    return len(prompt) if isinstance(prompt, str) else sum(len(str(message["content"])) for message in prompt)
