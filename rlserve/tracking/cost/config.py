"""Configuration of what a run may cost. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class CostConfig:
    """What the run's slots cost: docs/cost.md."""

    prices: str | None = None
    """YAML file with the price of an hour of each type of slot; a copy is kept in the run's folder. Without it costs
    are in GPU-hours alone: rlserve knows no prices."""
