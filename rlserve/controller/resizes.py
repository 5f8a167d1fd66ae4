"""What changes of the trainers' group took, as the metrics tell it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rlserve.trainers import Traffic


@dataclass(frozen=True, kw_only=True)
class Resize:
    """One change, from when the members were called at a boundary until all were in the group."""

    duration_s: float
    traffic: Traffic


def resize_metrics(resizes: Sequence[Resize]) -> dict[str, float]:
    """Of the changes since the step before; nothing where there was none. Names as in ``rlserve.tracking.names``."""
    if not resizes:
        return {}
    traffic = sum((resize.traffic for resize in resizes), Traffic())
    return {
        "training/resize_s": sum(resize.duration_s for resize in resizes),
        "training/resize_moved_bytes": traffic.moved_bytes,
        "training/resize_least_bytes": traffic.least_bytes,
    }
