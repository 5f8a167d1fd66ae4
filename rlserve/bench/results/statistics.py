"""Mean and percentiles of what was measured."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, kw_only=True)
class Distribution:
    """Of a quantity over requests, or over gaps between tokens."""

    number: int
    mean: float
    median: float
    p90: float
    p95: float
    p99: float
    maximum: float


def distribution(values: Iterable[float | None]) -> Distribution | None:
    """Of those that are there; percentiles are interpolated linearly. None of nothing."""
    known = np.array([value for value in values if value is not None], dtype=np.float64)
    if not known.size:
        return None
    median, p90, p95, p99 = np.percentile(known, (50, 90, 95, 99))
    return Distribution(
        number=known.size,
        mean=float(known.mean()),
        median=float(median),
        p90=float(p90),
        p95=float(p95),
        p99=float(p99),
        maximum=float(known.max()),
    )
