"""How many threads to compute with on a machine that others use too.

    all threads ── got too little of the processors ──► one thread, for a while ──► all again, to see …

Threads that compute together wait for each other hundreds of times in a step. Where another program holds the
processors, each wait lasts until the slowest thread gets its turn again, and the others give theirs up meanwhile: two
threads then get less done than one. What is computed does not depend on their number, to the bit.
"""

from __future__ import annotations

WINDOW_S = 0.05
"""Time over which the share of the processors is judged."""
MIN_SHARE = 0.6
"""Of the time of all threads: with less than this spent computing, one thread is faster."""
SHORTEST_S, LONGEST_S = 0.25, 2.0
"""How long one thread computes alone before all are tried again: twice as long each time in vain."""


class ThreadCount:
    """The decision, made from what the runs so far took."""

    def __init__(self) -> None:
        self._wall_s = self._cpu_s = 0.0
        self._alone_s = 0.0
        """Time that one thread is still to compute alone."""
        self._next_s = SHORTEST_S

    def choose(self, available: int) -> int:
        """Threads of the next run, of those there are."""
        return 1 if self._alone_s > 0 else available

    def observe(self, num_threads: int, *, wall_s: float, cpu_s: float) -> None:
        """Take note of a run: its time, and the processor time of all its threads."""
        if self._alone_s > 0:
            self._alone_s -= wall_s
            return
        self._wall_s += wall_s
        self._cpu_s += cpu_s
        if self._wall_s < WINDOW_S:
            return
        if self._cpu_s < MIN_SHARE * num_threads * self._wall_s and num_threads > 1:
            self._alone_s = self._next_s
            self._next_s = min(2 * self._next_s, LONGEST_S)
        else:
            self._next_s = SHORTEST_S
        self._wall_s = self._cpu_s = 0.0
