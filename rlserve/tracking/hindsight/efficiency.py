"""How a run compares with what its slots could have done, by the rates that the run itself measured.

- The fluid oracle takes the best split of each window, fractions of gangs allowed, and switches at no cost.
- The best static split takes the whole one that is best for the run in hindsight.

Both get the run's own factor (``comparison``): what no split changes counts for none. They rest on slots that do not
slow each other down; where slots share a processor they promise too much.
"""

from __future__ import annotations

from dataclasses import dataclass

from rlserve.tracking.hindsight.comparison import Hindsight
from rlserve.tracking.hindsight.windows import Window

_NUM_HALVINGS = 50


@dataclass(frozen=True, kw_only=True)
class Efficiency:
    """Prompt groups trained in a second."""

    realised: float
    best_static: float
    best_static_num_rollout: int
    """Gangs in rollout of that split."""
    static_error: float | None
    """Standard error of ``realised`` by ``best_static``; None where the run never had another split."""
    oracle: float


def efficiency(hindsight: Hindsight) -> Efficiency | None:
    """Of a whole run; None with a single gang."""
    windows, rates, num_gangs = hindsight.windows, hindsight.rates, len(hindsight.gangs)
    if num_gangs < 2:
        return None
    splits = {number: rates.by_type(number, hindsight.gangs) for number in range(1, num_gangs)}
    static_s = {
        number: hindsight.duration_s(windows, lambda window, split=split: rates.of(window, split))  # type: ignore[misc]
        for number, split in splits.items()
    }
    best = min(static_s, key=lambda number: static_s[number])
    oracle_s = hindsight.duration_s(windows, lambda window: oracle_rate(hindsight, window))
    num_groups = sum(window.num_groups for window in windows)
    moved = any(window.share_of(splits[best]) < 1.0 for window in windows)
    return Efficiency(
        realised=num_groups / sum(window.duration_s for window in windows),
        best_static=hindsight.factor * num_groups / static_s[best],
        best_static_num_rollout=best,
        static_error=hindsight.error(len(windows), len(windows)) if moved else None,
        oracle=hindsight.factor * num_groups / oracle_s,
    )


def oracle_rate(hindsight: Hindsight, window: Window) -> float:
    """The highest rate of any split: where both sides are as quick as each other, unless a whole split is above it, as
    where a slow type more takes samples from quick ones."""
    rates, gangs = hindsight.rates, hindsight.gangs
    low, high = 0.0, float(len(gangs))
    for _ in range(_NUM_HALVINGS):
        middle = (low + high) / 2
        split = rates.by_type(middle, gangs)
        if rates.generated(window, split) < rates.trained(window, split):
            low = middle
        else:
            high = middle
    candidates = (low, *range(1, len(gangs)))
    return max(rates.of(window, rates.by_type(number, gangs)) for number in candidates)
