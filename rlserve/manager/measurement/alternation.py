"""A load that goes to and fro: what it is in the mean, and how long it stays on one side.

A window that ends at the last change (``windows``) says what the load is now, and nothing of how long it will last.
Where the last two changes went in opposite directions, it is taken to go back once more.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from rlserve.manager.measurement.figures import Alternation

_NUM_REGIMES = 4
"""That are remembered."""


@dataclass
class _Regime:
    """Values between two changes."""

    begin_s: float
    count: int = 0
    total: float = 0.0

    @property
    def mean(self) -> float:
        return self.total / self.count


class Alternations:
    """Takes values as they come, and whether a change was seen with each."""

    def __init__(self) -> None:
        self._ended: deque[_Regime] = deque(maxlen=_NUM_REGIMES)
        self._current: _Regime | None = None

    def note(self, time_s: float, value: float, *, changed: bool) -> None:
        """The values in which a change shows are few, and count for what was before."""
        if self._current is not None and changed:
            self._ended.append(self._current)
        if self._current is None or changed:
            self._current = _Regime(begin_s=time_s)
        self._current.count += 1
        self._current.total += value

    def figure(self) -> Alternation | None:
        """None where the last two changes did not go to and fro."""
        if len(self._ended) < 2 or self._current is None:
            return None
        before, last = self._ended[-2], self._ended[-1]
        if (last.mean - before.mean) * (self._current.mean - last.mean) >= 0.0:
            return None
        begins_s = [regime.begin_s for regime in (*self._ended, self._current)]
        return Alternation(
            mean=(before.total + last.total) / (before.count + last.count),
            regime_s=(begins_s[-1] - begins_s[0]) / len(self._ended),
        )
