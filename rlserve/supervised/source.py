"""The data of a supervised run: batches without end, in an order given by the seed, that a resumed run goes on with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rlserve.rollout.dataset.epochs import EpochOrder
from rlserve.rollout.dataset.same_content import SourceContent
from rlserve.supervised.batch import build_batch
from rlserve.supervised.tokenised_rows import TokenisedRows
from rlserve.trainers.batch import Batch


class SupervisedSource:
    """Hands out the rows of the training data, epoch after epoch; a batch may have the last rows of one epoch and the
    first of the next."""

    def __init__(
        self, rows: TokenisedRows, *, held_out: TokenisedRows, seed: int, shuffle: bool, batch_size: int
    ) -> None:
        self._rows = rows
        self._held_out = held_out
        self._content = SourceContent(seed=seed, train=rows, held_out=held_out, rows_are="rows", row_is="row")
        self._order = EpochOrder(len(rows), seed=seed, shuffle=shuffle)
        self._batch_size = batch_size
        self._position = 0
        """Rows that were trained on."""

    @property
    def batch_size(self) -> int:
        """Rows in a batch."""
        return self._batch_size

    def num_steps(self, num_epochs: int) -> int:
        """Batches of so many passes over the data; the last may begin another."""
        return -(-num_epochs * len(self._rows) // self._batch_size)

    def next(self) -> Batch:
        """The batch of the next step: the same until :meth:`advance`."""
        places = (self._order.at(position) for position in range(self._position, self._position + self._batch_size))
        return build_batch(self._rows, ((f"{epoch}:{self._rows.number(index)}", index) for epoch, index in places))

    def advance(self) -> None:
        """The batch was trained on."""
        self._position += self._batch_size

    def held_out(self) -> Batch:
        """All rows that the model is judged by."""
        rows = self._held_out
        return build_batch(rows, ((f"held_out:{rows.number(index)}", index) for index in range(len(rows))))

    def describe(self) -> str:
        """Rows and tokens, for people."""
        train, held_out = self._rows, self._held_out
        return (
            f"{len(train):,} rows to train on with {train.num_tokens:,} tokens, {train.num_trained_tokens:,} of them "
            f"learned; {len(held_out):,} held out"
        )

    def snapshot(self) -> dict[str, Any]:
        """The position as plain data for a checkpoint (JSON), and what the data comes down to."""
        return self._content.snapshot(self._position)

    def restore(self, snapshot: Mapping[str, Any]) -> None:
        """Go on where ``snapshot`` was taken.

        Raises:
            DataError: the data are others than then, or in another order.
        """
        self._position = self._content.position_in(snapshot)
