"""All rows of a data set as tokens, in memory: 5 bytes a token.

Legend: S samples, N tokens of all samples.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from rlserve.errors import DataError
from rlserve.rollout.dataset.base import BadRowError, Table
from rlserve.rollout.dataset.content_digest import fingerprint
from rlserve.supervised.base import RowReader, Sample

logger = logging.getLogger(__name__)


class TokenisedRows:
    """Rows that can be used, each with one or several samples."""

    def __init__(self, path: str, table: Table, numbers: Sequence[int], reader: RowReader, *, max_length: int) -> None:
        """Read the rows of these ``numbers``; those with a sample of more than ``max_length`` tokens are left out.

        Raises:
            DataError: a row cannot be used, or all are too long; the first of them is named.
        """
        self.path = path
        self.samples_per_row = reader.samples_per_row
        self._table = table
        self._numbers: list[int] = []
        samples: list[Sample] = []
        digests: list[int] = []
        longest = 0
        for number in numbers:
            try:
                read = reader.read(table.row(number))
            except BadRowError as error:
                raise DataError(f"{table.place(number)}: {error}") from error
            length = max(len(sample.token_ids) for sample in read)
            longest = max(longest, length)
            if length <= max_length:
                self._numbers.append(number)
                samples += read
                digests.append(_digest(read))
        if not samples:
            raise DataError(
                f"{path}: every row has more than {max_length} tokens, the longest {longest}; raise data.max_length"
            )
        if len(self._numbers) < len(numbers):
            logger.warning(
                "%s: %d of %d rows have more than %d tokens and are left out; the longest has %d (data.max_length)",
                path,
                len(numbers) - len(self._numbers),
                len(numbers),
                max_length,
                longest,
            )
        self._token_ids_N = np.concatenate([sample.token_ids for sample in samples])
        self._is_trained_N = np.concatenate([sample.is_trained for sample in samples])
        self._ends_S = np.cumsum([len(sample.token_ids) for sample in samples])
        self._margins_S = [sample.margin for sample in samples]
        self.digests: NDArray[np.uint64] = np.array(digests, dtype=np.uint64)
        """[rows] of their tokens, and of which are learned."""

    def __len__(self) -> int:
        return len(self._numbers)

    @property
    def num_tokens(self) -> int:
        """Of all samples."""
        return len(self._token_ids_N)

    @property
    def num_trained_tokens(self) -> int:
        """Those that are learned."""
        return int(self._is_trained_N.sum())

    @property
    def fingerprint(self) -> tuple[str, ...]:
        """Of all rows, in order."""
        return fingerprint(self.digests)

    def place(self, index: int) -> str:
        """Where a row stands."""
        return self._table.place(self._numbers[index])

    def number(self, index: int) -> int:
        """Of a row in the data as loaded, from 0."""
        return self._numbers[index]

    def samples(self, index: int) -> Iterable[Sample]:
        """Of a row; views."""
        for sample in range(index * self.samples_per_row, (index + 1) * self.samples_per_row):
            tokens = slice(self._ends_S[sample - 1] if sample else 0, self._ends_S[sample])
            yield Sample(
                token_ids=self._token_ids_N[tokens],
                is_trained=self._is_trained_N[tokens],
                margin=self._margins_S[sample],
            )


def _digest(samples: Sequence[Sample]) -> int:
    found = hashlib.blake2b(digest_size=8)
    for sample in samples:
        found.update(sample.token_ids.astype("<i4").tobytes())
        found.update(np.packbits(sample.is_trained).tobytes())
        found.update(repr(sample.margin).encode())
    return int.from_bytes(found.digest(), "little")
