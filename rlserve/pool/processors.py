"""How busy the processors of this machine are."""

from __future__ import annotations

from statistics import fmean

import psutil


class Processors:
    """Those that this process may use: workers on CPU slots use the same."""

    def __init__(self) -> None:
        process = psutil.Process()
        numbers = process.cpu_affinity() if hasattr(process, "cpu_affinity") else None  # not on macOS
        self._numbers = frozenset(numbers or range(psutil.cpu_count() or 1))

    def busy_share(self) -> float:
        """Of their time since this was last asked, 0 to 1; the first answer means nothing."""
        busy = [percent for number, percent in enumerate(psutil.cpu_percent(percpu=True)) if number in self._numbers]
        return fmean(busy) / 100
