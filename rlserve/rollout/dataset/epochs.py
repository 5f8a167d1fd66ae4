"""The order in which rows are handed out, epoch after epoch: a function of (seed, epoch)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


class EpochOrder:
    """Of an endless stream over some rows."""

    def __init__(self, num_rows: int, *, seed: int, shuffle: bool) -> None:
        self._num_rows = num_rows
        self._seed = seed
        self._shuffle = shuffle
        self._last: tuple[int, NDArray[np.int64]] | None = None
        """The epoch used last, and its order."""

    def at(self, position: int) -> tuple[int, int]:
        """Epoch and row at a position of the stream."""
        epoch, place = divmod(position, self._num_rows)
        return epoch, int(self._order(epoch)[place])

    def _order(self, epoch: int) -> NDArray[np.int64]:
        """[num_rows] the rows of an epoch in the order in which they are handed out."""
        if self._last is None or self._last[0] != epoch:
            order = (
                np.random.default_rng((self._seed, epoch)).permutation(self._num_rows)
                if self._shuffle
                else np.arange(self._num_rows)
            )
            self._last = (epoch, order)
        return self._last[1]
