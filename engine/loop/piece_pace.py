"""How often streams are told of new tokens, so that telling does not take the processors that generating needs."""

from __future__ import annotations

import time
from collections.abc import Callable

_SHORTEST_S = 1 / 18
_LONGEST_S = 0.25


class PiecePace:
    """Bounds the pieces of many streams that are told a second: after ``k`` of them the next are due ``k / max_per_s``
    later, a quarter of a second at most, and what came meanwhile is told together. Where that is less than an
    eighteenth of a second nobody waits, and each token is told alone: streams are so few that their number is bound
    enough. All are told at once: whoever reads is woken less often than if each had a time of its own.

    Args:
        max_per_s: infinity bounds nothing.
        clock: seconds.
    """

    def __init__(self, max_per_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._max_per_s = max_per_s
        self._clock = clock
        self._due_s = clock()

    @property
    def is_due(self) -> bool:
        """Whether those that were told of something before may be told again."""
        return self._clock() >= self._due_s

    def told(self, num_pieces: int) -> None:
        """So many were told now, due or not: first tokens never wait."""
        now_s, wait_s = self._clock(), num_pieces / self._max_per_s
        if wait_s > _SHORTEST_S:
            self._due_s = min(max(self._due_s, now_s) + wait_s, now_s + _LONGEST_S)
