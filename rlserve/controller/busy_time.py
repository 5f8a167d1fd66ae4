"""How long something was under way."""

from __future__ import annotations

from rlserve.controller.clock import RunClock


class BusyTime:
    """Adds up the time in which at least one thing is under way."""

    def __init__(self, clock: RunClock) -> None:
        self._clock = clock
        self._num_entered = 0
        self._since_s = 0.0
        self._past_s = 0.0

    @property
    def total_s(self) -> float:
        """Up to now."""
        return self._past_s + (self._clock.now() - self._since_s if self._num_entered else 0.0)

    def __enter__(self) -> None:
        if not self._num_entered:
            self._since_s = self._clock.now()
        self._num_entered += 1

    def __exit__(self, *_: object) -> None:
        self._num_entered -= 1
        if not self._num_entered:
            self._past_s += self._clock.now() - self._since_s
