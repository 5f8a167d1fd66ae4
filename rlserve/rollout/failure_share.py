"""When prompt groups fail too often for a run to go on: a share of the last ones, however long the run."""

from __future__ import annotations

from collections import deque

WINDOW = 32
"""Prompt groups that are looked back on; those that are still to come count as good ones."""


class FailureShare:
    """Remembers which of the last prompt groups failed."""

    def __init__(self, max_share: float) -> None:
        self._max_share = max_share
        self._failed: deque[bool] = deque(maxlen=WINDOW)

    def note(self, *, failed: bool) -> bool:
        """Take note of one more group; returns whether too many of the last ones failed."""
        self._failed.append(failed)
        return self.num_failed > self.max_failed

    @property
    def num_failed(self) -> int:
        """Of the last ``WINDOW`` groups."""
        return sum(self._failed)

    @property
    def max_failed(self) -> int:
        """How many of them may fail."""
        return int(self._max_share * WINDOW + 1e-9)
