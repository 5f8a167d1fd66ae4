"""Time by type of slot, role and use; and which of it each training step was credited with."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass

from rlserve.tracking.cost.uses import Use

NS = 1_000_000_000
"""Nanoseconds of a second."""


def to_ns(seconds: float) -> int:
    """Whole nanoseconds."""
    return round(seconds * NS)


@dataclass(frozen=True)
class Account:
    """Slots of one type while they have one role."""

    slot_type: str
    role: str
    """train, rollout, moving or dead: the owner, as ``SlotEvent`` says it."""


class Accounts:
    """Books time. What is useful belongs to a step, and can be taken back with it."""

    def __init__(self) -> None:
        self.spent_ns: defaultdict[Account, Counter[Use]] = defaultdict(Counter)
        self._credits: defaultdict[int, Counter[tuple[Account, Use]]] = defaultdict(Counter)

    def book(self, account: Account, use: Use, duration_ns: int) -> None:
        """Some time was used."""
        if duration_ns:
            self.spent_ns[account][use] += duration_ns

    def credit(self, step: int, account: Account, use: Use, duration_ns: int) -> None:
        """Some time was used for a training step."""
        self.book(account, use, duration_ns)
        self._credits[step][account, use] += duration_ns

    def undo(self, after_step: int) -> None:
        """The run goes on after ``after_step``: what later steps were credited with is lost."""
        for step in [step for step in self._credits if step > after_step]:
            for (account, use), duration_ns in self._credits.pop(step).items():
                self.spent_ns[account][use] -= duration_ns
                self.book(account, Use.LOST, duration_ns)

    @property
    def total_ns(self) -> int:
        """All that is booked."""
        return sum(uses.total() for uses in self.spent_ns.values())
