"""What a run of ``rlserve bench`` does while it does it."""

from __future__ import annotations

import time
from statistics import median

from rich.progress_bar import ProgressBar
from rich.table import Table

from rlserve.bench.client.client import Watcher
from rlserve.bench.results.record import RequestRecord
from rlserve.tracking.progress import format_duration

_NUM_RECENT = 200
"""Requests that the median is of."""


class Progress(Watcher):
    """Counts, and is drawn by rich whenever that likes to."""

    def __init__(self, name: str, num_conversations: int | None) -> None:
        """``num_conversations`` is how many there will be, where that is known."""
        self._name = name
        self._num_conversations = num_conversations
        self._begun_s = time.monotonic()
        self._num_sent = self._num_ended = self._num_failed = self._num_pieces = 0
        self._conversations: set[int] = set()
        self._ttfts_s: list[float] = []

    def sent(self) -> None:
        """One more is in flight."""
        self._num_sent += 1

    def received(self) -> None:
        """A piece of an answer."""
        self._num_pieces += 1

    def ended(self, record: RequestRecord) -> None:
        """One fewer is in flight."""
        self._num_ended += 1
        self._num_failed += record.failure is not None
        self._conversations.add(record.conversation)
        if record.ttft_s is not None:
            self._ttfts_s = [*self._ttfts_s[1 - _NUM_RECENT :], record.ttft_s]

    def __rich__(self) -> Table:
        seconds = time.monotonic() - self._begun_s
        table = Table.grid(padding=(0, 2))
        known = self._num_conversations
        bar = "" if known is None else ProgressBar(total=known, completed=len(self._conversations), width=24)
        table.add_row(self._name, format_duration(seconds), bar, *self._counts(seconds))
        return table

    def _counts(self, seconds: float) -> list[str]:
        ttft = f"TTFT {1000 * median(self._ttfts_s):,.0f} ms" if self._ttfts_s else ""
        failed = f"[red]{self._num_failed:,} failed[/]" if self._num_failed else ""
        return [
            f"{self._num_ended - self._num_failed:,} answered",
            failed,
            f"{self._num_sent - self._num_ended:,} in flight",
            f"{self._num_pieces / max(seconds, 1e-3):,.0f} pieces/s",
            ttft,
        ]
