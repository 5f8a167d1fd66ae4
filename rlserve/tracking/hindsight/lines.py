"""Straight lines through what was measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

_SPREAD = 0.15
"""Of x around its mean, relative: with so much, the measured slope and the one that is believed count alike."""

Point = tuple[float, float, float]
"""x, y and the weight."""


@dataclass(frozen=True, kw_only=True)
class Straight:
    """``y = base + slope x``, neither below 0."""

    base: float
    slope: float

    def at(self, x: float) -> float:
        """y there."""
        return self.base + self.slope * x


def fitted(points: Sequence[Point], *, proportional: float) -> Straight:
    """The least squares line through points with positive x, y and weights, of which there is at least one.

    Where x hardly varies its slope is not known: it is drawn (ridge regression) towards a line of which, at the mean
    of x, the share ``proportional`` of y grows with x.
    """
    weight = sum(weight for _, _, weight in points)
    mean_x = sum(weight * x for x, _, weight in points) / weight
    mean_y = sum(weight * y for _, y, weight in points) / weight
    variance = sum(weight * (x - mean_x) ** 2 for x, _, weight in points) / weight
    covariance = sum(weight * (x - mean_x) * (y - mean_y) for x, y, weight in points) / weight
    ridge = (_SPREAD * mean_x) ** 2
    slope = (covariance + ridge * proportional * mean_y / mean_x) / (variance + ridge)
    slope = min(max(slope, 0.0), mean_y / mean_x)
    return Straight(base=mean_y - slope * mean_x, slope=slope)
