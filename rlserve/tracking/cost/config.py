"""Configuration of what a run may cost. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from rlserve.errors import check_fields


@dataclass(frozen=True, kw_only=True)
class BudgetConfig:
    """What a run may cost, stops between resumes left out."""

    gpu_hours: float | None = None
    """GPU-hours; a CPU slot counts like a GPU."""
    money: float | None = None
    """In the currency of ``cost.prices``, which must then be given."""
    on_passed: Literal["warn", "stop"] = "warn"
    """What follows when either is passed: ``warn`` says so, in the log and as an event; ``stop`` also lets the step
    under way end, saves, and ends the run, which can be resumed with a larger budget."""

    def __post_init__(self) -> None:
        check_fields(
            self,
            {
                "gpu_hours": self.gpu_hours is None or self.gpu_hours > 0 or "must be above 0",
                "money": self.money is None or self.money > 0 or "must be above 0",
            },
        )


@dataclass(frozen=True, kw_only=True)
class CostConfig:
    """What the run's slots cost: docs/cost.md."""

    prices: str | None = None
    """YAML file with the price of an hour of each type of slot; a copy is kept in the run's folder. Without it costs
    are in GPU-hours alone: rlserve knows no prices."""
    budget: BudgetConfig = field(default_factory=BudgetConfig)

    def __post_init__(self) -> None:
        check_fields(
            self,
            {"prices": self.budget.money is None or self.prices is not None or "must be given for cost.budget.money"},
        )
