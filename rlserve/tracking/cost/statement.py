"""What the time of a run's slots went into, as of one moment."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from rlserve.tracking.cost.accounts import NS, Account
from rlserve.tracking.cost.uses import USEFUL, Use

_NS_OF_HOUR = 3600 * NS


@dataclass(frozen=True, kw_only=True)
class StepCost:
    """As of the end of a training step."""

    step: int
    owned_ns: Mapping[str, int]
    """That the run has had its slots since it began, by type."""
    num_trained_tokens: int
    """Of this step, prompts included."""


@dataclass(frozen=True, kw_only=True)
class Statement:
    """Totals. For each account, what it is owned is the sum of its uses, exactly."""

    owned_ns: Mapping[Account, int]
    spent_ns: Mapping[Account, Mapping[Use, int]]
    num_steps: int
    num_trained_tokens: int
    """Prompts included."""
    num_generated_tokens: int

    @property
    def gpu_hours(self) -> float:
        """That the run had, all slots together."""
        return hours(sum(self.owned_ns.values()))

    def hours_of(self, *uses: Use, role: str | None = None, slot_type: str | None = None) -> float:
        """Spent on some uses, or on all where none is named; of one role or type, where that is said."""
        return hours(
            sum(
                duration_ns
                for account, spent in self.spent_ns.items()
                if role in (None, account.role) and slot_type in (None, account.slot_type)
                for use, duration_ns in spent.items()
                if not uses or use in uses
            )
        )

    @property
    def by_use(self) -> Mapping[Use, float]:
        """GPU-hours of each use, in the order of :class:`Use`."""
        return {use: self.hours_of(use) for use in Use}

    @property
    def useful_share(self) -> float | None:
        """Of all time; None where there was none."""
        return self.hours_of(*USEFUL) / self.gpu_hours if self.gpu_hours else None

    def check_integrity(self) -> None:
        """Assert the sum rule."""
        owned = {account: duration_ns for account, duration_ns in self.owned_ns.items() if duration_ns}
        spent = {account: total for account, uses in self.spent_ns.items() if (total := Counter(uses).total())}
        assert owned == spent, f"owned {owned}, but spent {spent}"
        negative = [uses for uses in self.spent_ns.values() if min(uses.values(), default=0) < 0]
        assert not negative, f"time below 0: {negative}"


def hours(duration_ns: int) -> float:
    """Of whole nanoseconds."""
    return duration_ns / _NS_OF_HOUR
