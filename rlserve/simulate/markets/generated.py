"""Spot machines by chance: a zone is rich or poor for a while each, as the published traces are."""

from __future__ import annotations

import random
from dataclasses import dataclass

from rlserve.errors import check_fields
from rlserve.simulate.markets.base import Availability


@dataclass(frozen=True, kw_only=True)
class MarketFigures:
    """What a zone does in the mean. Spans of time are exponential."""

    rich_s: float = 6 * 3600.0
    """It has all machines that are asked for."""
    poor_s: float = 2 * 3600.0
    """It has a part of them, or none."""
    poor_share: float = 0.5
    """That part is uniform from 0 up to this."""

    def __post_init__(self) -> None:
        check_fields(
            self,
            {
                "rich_s": self.rich_s > 0 or "must be above 0",
                "poor_s": self.poor_s > 0 or "must be above 0",
                "poor_share": 0 <= self.poor_share <= 1 or "must be in [0, 1]",
            },
        )


def generate_availability(figures: MarketFigures, *, duration_s: float, seed: str) -> Availability:
    """``duration_s`` of a zone; it begins rich."""
    chance = random.Random(seed)
    times_s, shares = [0.0], [1.0]
    rich, now_s = True, chance.expovariate(1 / figures.rich_s)
    while now_s < duration_s:
        rich = not rich
        times_s.append(now_s)
        shares.append(1.0 if rich else chance.uniform(0.0, figures.poor_share))
        now_s += chance.expovariate(1 / (figures.rich_s if rich else figures.poor_s))
    return Availability(times_s=tuple(times_s), shares=tuple(shares), duration_s=duration_s)
