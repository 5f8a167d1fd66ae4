"""How fast a replica is, from totals that it tells now and then."""

from __future__ import annotations

_WINDOW_S = 30.0
"""Busy time over which the speed is a mean: what is older counts less and less."""


class SpeedMeter:
    """Tokens a second of the time in which the engine was busy, with exponentially falling weights."""

    def __init__(self) -> None:
        self._num_tokens = self._busy_s = 0.0
        self._last_num_tokens = 0
        self._last_busy_s = 0.0

    @property
    def tokens_per_s(self) -> float | None:
        """None before the engine was busy."""
        return self._num_tokens / self._busy_s if self._busy_s > 0 else None

    def note(self, num_tokens: int, busy_s: float) -> None:
        """Take totals since the engine began."""
        new_s = busy_s - self._last_busy_s
        kept = max(1.0 - new_s / _WINDOW_S, 0.0)
        self._num_tokens = kept * self._num_tokens + num_tokens - self._last_num_tokens
        self._busy_s = kept * self._busy_s + new_s
        self._last_num_tokens, self._last_busy_s = num_tokens, busy_s
