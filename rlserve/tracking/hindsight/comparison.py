"""A run held against splits that it did not have, or not all the time.

A load follows the policy as it learns, so the same prompt groups are compared, not the same time. How long a split
would have taken for a window's groups follows from its predicted rate under the window's load, times the run's factor:
what really came by what is predicted of the splits that there were. The factor is that of the windows that had the
very split, where the run had it; else that of all. How far the run's windows scatter around it is the uncertainty.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rlserve.tracking.hindsight.rates import Rates
from rlserve.tracking.hindsight.splits import Split
from rlserve.tracking.hindsight.windows import Window

_PURE = 0.9
"""Share of a window's time with one split from which on the window is the split's."""
_MIN_WINDOWS = 3
"""Of which a scatter is told."""
CERTAIN = 2.0
"""Standard errors."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What came, and what would have come of another split under the same load."""

    num_groups: int
    """Trained."""
    duration_s: float
    """That it took."""
    would_s: float
    """That it would have taken."""
    error: float
    """Standard error of ``change``."""

    @property
    def would_rate(self) -> float:
        """Prompt groups a second of the other split."""
        return self.num_groups / self.would_s

    @property
    def change(self) -> float:
        """Of the rate: 0.05 is 5 % more."""
        return self.would_s / self.duration_s - 1.0

    @property
    def gain(self) -> float:
        """Prompt groups more than the other would have trained in the time."""
        return self.num_groups - self.would_rate * self.duration_s

    @property
    def is_certain(self) -> bool:
        """Whether the difference is more than chance would make it."""
        return abs(self.change) >= CERTAIN * self.error


@dataclass(frozen=True, kw_only=True)
class Hindsight:
    """All that a run says about what could have been."""

    windows: tuple[Window, ...]
    """At least three."""
    rates: Rates
    gangs: tuple[str, ...]
    """The type of each."""

    def compare(self, windows: Sequence[Window], split: Split) -> Comparison | None:
        """Some of the windows against a split; None where there are none, or the split cannot train."""
        if not windows or min(self.rates.of(window, split) for window in windows) <= 0.0:
            return None
        factor, num_windows = self._factor(split)
        return Comparison(
            num_groups=sum(window.num_groups for window in windows),
            duration_s=sum(window.duration_s for window in windows),
            would_s=self.duration_s(windows, lambda window: factor * self.rates.of(window, split)),
            error=self.error(len(windows), num_windows),
        )

    def error(self, num_windows: int, num_of_factor: int) -> float:
        """Standard error of so many windows against a factor of so many, relative."""
        return self.scatter * math.sqrt(1.0 / num_windows + 1.0 / num_of_factor)

    @staticmethod
    def duration_s(windows: Sequence[Window], rate: Callable[[Window], float]) -> float:
        """That the groups of some windows take at other rates."""
        return sum(window.num_groups / rate(window) for window in windows)

    @property
    def factor(self) -> float:
        """What came in the whole run, by what is predicted of its splits."""
        return _factor(self.rates, self.windows)

    @property
    def scatter(self) -> float:
        """Of the windows around the factor, relative: a standard deviation."""
        factors = [_factor(self.rates, [window]) / self.factor for window in self.windows]
        return math.sqrt(sum((factor - 1.0) ** 2 for factor in factors) / (len(factors) - 1))

    def _factor(self, split: Split) -> tuple[float, int]:
        own = [window for window in self.windows if window.share_of(split) >= _PURE]
        return _factor(self.rates, own or self.windows), len(own or self.windows)


def look_back(rates: Rates | None, windows: Sequence[Window], gangs: Sequence[str]) -> Hindsight | None:
    """None where too little was measured."""
    if rates is None or len(windows) < _MIN_WINDOWS or min(rates.in_window(window) for window in windows) <= 0.0:
        return None
    return Hindsight(windows=tuple(windows), rates=rates, gangs=tuple(gangs))


def _factor(rates: Rates, windows: Sequence[Window]) -> float:
    """By time, training standing still for moves left out: that is what they cost."""
    expected_s = sum(window.num_groups / rates.in_window(window) for window in windows)
    return expected_s / sum(max(window.duration_s - window.pause_s, 1e-9) for window in windows)
