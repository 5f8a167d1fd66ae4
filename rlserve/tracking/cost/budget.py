"""Whether a run has cost more than it may."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from rlserve.errors import UserError
from rlserve.tracking.cost.config import BudgetConfig
from rlserve.tracking.cost.figures import Amount
from rlserve.tracking.cost.prices import Prices

Unit = Literal["gpu_hours", "money"]


@dataclass(frozen=True, kw_only=True)
class Spent:
    """Of one budget."""

    unit: Unit
    spent: float
    budget: float

    def __str__(self) -> str:
        return f"{self.spent:.6g} is spent of cost.budget.{self.unit}={self.budget:g}"

    @property
    def share(self) -> float:
        """1 where all of it is spent."""
        return self.spent / self.budget


def check_priced(budget: BudgetConfig, prices: Prices | None, slot_types: Iterable[str]) -> None:
    """Refuse a budget in money that could not be watched.

    Raises:
        UserError: a type of slot has no price.
    """
    missing = sorted({name for name in slot_types if prices is None or prices.of(name) is None})
    if budget.money is not None and missing:
        raise UserError(f"cost.budget.money needs a price for {', '.join(missing)}: add it to the file of cost.prices")


def spent_of(budget: BudgetConfig, amount: Amount) -> Iterator[Spent]:
    """Of each budget that there is; of one in money, where all that the run had has a price."""
    if budget.gpu_hours is not None:
        yield Spent(unit="gpu_hours", spent=amount.gpu_hours, budget=budget.gpu_hours)
    if budget.money is not None and amount.money is not None:
        yield Spent(unit="money", spent=amount.money, budget=budget.money)
