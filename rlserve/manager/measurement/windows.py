"""The mean of what came lately, where "lately" ends at the last change.

An average over minutes is late by minutes, a short one is noise. So the window grows while what comes looks alike, and
is cut where it does not: with every fourth value, the last 8, 12, 16, 24 … are held against all before them by a
likelihood ratio (as in ADWIN, Bifet and Gavaldà 2007, but for its bound, which needs several times as many
values). Between 0.4 and 1.0 of groups kept it takes about 12, between 0.4 and 0.7 about 60; without a
change the window is shorter than 200 values in one or two hundredths of the time.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

_SUFFIXES = tuple(length for power in range(3, 12) for length in (2**power, 3 * 2 ** (power - 1)))
"""Lengths of the end of the window that are tested."""
_TEST_EVERY = 4
"""Values: a test of all lengths costs more than what it finds sooner."""
_MIN_BEFORE = 8
"""Values before the end that is tested: with fewer, there is nothing to differ from."""


@dataclass(frozen=True, slots=True)
class _Sums:
    """Of some values."""

    count: int
    total: float
    squares: float

    def __sub__(self, other: _Sums) -> _Sums:
        return _Sums(self.count - other.count, self.total - other.total, self.squares - other.squares)


class AdaptiveWindow(ABC):
    """Holds at most twice ``max_length`` sums; adding a value tests some twenty splits."""

    def __init__(self, max_length: int) -> None:
        self._max_length = max_length
        self._sums = [_Sums(0, 0.0, 0.0)]
        """Of everything before each value, from the first of the window on."""

    def __len__(self) -> int:
        return len(self._sums) - 1

    @property
    def mean(self) -> float | None:
        """Of the window; None where it is empty."""
        window = self._sums[-1] - self._sums[0]
        return window.total / window.count if window.count else None

    def add(self, value: float) -> bool:
        """Take a value in, and cut the window where the values before look different; returns whether they did."""
        last = self._sums[-1]
        self._sums.append(_Sums(last.count + 1, last.total + value, last.squares + value * value))
        if len(self) > self._max_length:
            self._cut(self._max_length // 2)
        length = self._change() if self._sums[-1].count % _TEST_EVERY == 0 else None
        if length is not None:
            self._cut(length)
        return length is not None

    def _change(self) -> int | None:
        """How many of the last values have come since the change; None where there was none."""
        best, best_gain = None, self._threshold
        whole = self._sums[-1] - self._sums[0]
        for length in _SUFFIXES:
            if length < self._shortest:
                continue
            if length > len(self) - _MIN_BEFORE:
                break
            after = self._sums[-1] - self._sums[-1 - length]
            gain = self._gain(whole - after, after, whole)
            if gain > best_gain:
                best, best_gain = length, gain
        return best

    def _cut(self, length: int) -> None:
        del self._sums[: len(self) - length]
        if self._sums[0].count > 1 << 20:  # or rounding errors would grow for ever
            first = self._sums[0]
            self._sums = [each - first for each in self._sums]

    @property
    @abstractmethod
    def _threshold(self) -> float:
        """Least gain in log-likelihood that counts as a change."""

    @property
    @abstractmethod
    def _shortest(self) -> int:
        """Least number of values in which a change is seen."""

    @abstractmethod
    def _gain(self, before: _Sums, after: _Sums, whole: _Sums) -> float:
        """Log-likelihood of two means, less that of one."""


class ShareWindow(AdaptiveWindow):
    """Of values that are 0 or 1."""

    _threshold = 9.0
    _shortest = 8

    def _gain(self, before: _Sums, after: _Sums, whole: _Sums) -> float:
        return self._log_likelihood(before) + self._log_likelihood(after) - self._log_likelihood(whole)

    def _log_likelihood(self, sums: _Sums) -> float:
        share = sums.total / sums.count
        if share <= 0.0 or share >= 1.0:
            return 0.0
        return sums.total * math.log(share) + (sums.count - sums.total) * math.log1p(-share)


class AmountWindow(AdaptiveWindow):
    """Of values that vary around their mean, such as lengths: a change of the mean counts, one of the spread does
    not."""

    _threshold = 10.0
    _shortest = 64  # groups end in no random order: after a wait the long ones come, one after the other

    def _gain(self, before: _Sums, after: _Sums, whole: _Sums) -> float:
        floor = 1e-4 * whole.total * whole.total / whole.count
        apart = max(self._squares(before) + self._squares(after), floor)
        return 0.5 * whole.count * math.log(max(self._squares(whole), floor) / apart)

    def _squares(self, sums: _Sums) -> float:
        """Squared distances from the mean."""
        return max(0.0, sums.squares - sums.total * sums.total / sums.count)
