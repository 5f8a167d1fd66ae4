"""What a statement comes to: amounts, and what one of anything costs; in GPU-hours, and in money at given prices."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from rlserve.tracking.cost.prices import Prices
from rlserve.tracking.cost.statement import Statement
from rlserve.tracking.cost.uses import USEFUL, Use

MILLION = 1_000_000


@dataclass(frozen=True, kw_only=True)
class Amount:
    """Time of slots."""

    gpu_hours: float
    """A CPU slot counts like a GPU."""
    money: float | None
    """None where a type of slot in it has no price."""

    def per(self, number: float) -> Amount | None:
        """Of one, where so many cost this; None where there are none."""
        if number <= 0:
            return None
        money = None if self.money is None else self.money / number
        return Amount(gpu_hours=self.gpu_hours / number, money=money)


@dataclass(frozen=True, kw_only=True)
class Scores:
    """Held-out scores that a run began and ended with; None is what was not taken."""

    before: float | None = None
    after: float | None = None

    @property
    def points(self) -> float | None:
        """Percentage points that were gained."""
        return None if self.before is None or self.after is None else 100 * (self.after - self.before)


@dataclass(frozen=True, kw_only=True)
class CostFigures:
    """Of one run, as of one moment."""

    statement: Statement
    prices: Prices | None
    scores: Scores = Scores()

    def amount(self, *uses: Use, role: str | None = None, slot_type: str | None = None) -> Amount:
        """Spent on some uses, or on all; of one role or type, where that is said."""
        spent = {
            name: self.statement.hours_of(*uses, role=role, slot_type=name)
            for name in self.slot_types
            if slot_type in (None, name)
        }
        return Amount(gpu_hours=sum(spent.values()), money=money_of(spent, self.prices))

    @property
    def slot_types(self) -> tuple[str, ...]:
        """That the run had."""
        return tuple(sorted({account.slot_type for account in self.statement.owned_ns}))

    @property
    def without_price(self) -> tuple[str, ...]:
        """Types that no price is given for."""
        return tuple(name for name in self.slot_types if self.prices is not None and self.prices.of(name) is None)

    @property
    def per_step(self) -> Amount | None:
        """Of a training step."""
        return self.amount().per(self.statement.num_steps)

    @property
    def per_million_trained_tokens(self) -> Amount | None:
        """All of the run, for a million tokens in its training steps, prompts included."""
        return self.amount().per(self.statement.num_trained_tokens / MILLION)

    @property
    def per_million_rollout_tokens(self) -> Amount | None:
        """What had the rollout role, for a million tokens that were generated."""
        return self.amount(role="rollout").per(self.statement.num_generated_tokens / MILLION)

    @property
    def per_point(self) -> Amount | None:
        """All of the run, for a percentage point of the held-out score; None where it was not raised."""
        return self.amount().per(self.scores.points or 0.0)

    def metrics(self) -> Mapping[str, float]:
        """Under the names of ``rlserve.tracking.names``."""
        total = self.amount()
        found: dict[str, float | None] = {"cost/gpu_hours": total.gpu_hours, "cost/money": total.money}
        if total.gpu_hours:
            found["cost/useful_share"] = self.statement.useful_share
            for use, used_hours in self.statement.by_use.items():
                if use not in USEFUL:
                    found[f"cost/{use}_share"] = used_hours / total.gpu_hours
        for name, amount in (
            ("step", self.per_step),
            ("1m_trained_tokens", self.per_million_trained_tokens),
            ("1m_rollout_tokens", self.per_million_rollout_tokens),
        ):
            if amount is not None:
                found |= {f"cost/gpu_hours_per_{name}": amount.gpu_hours, f"cost/money_per_{name}": amount.money}
        return {name: value for name, value in found.items() if value is not None}

    def to_dict(self) -> dict[str, Any]:
        """For programs: everything that ``rlserve cost`` shows."""
        accounts = sorted({(account.slot_type, account.role) for account in self.statement.owned_ns})
        units = {
            "step": self.per_step,
            "1m_trained_tokens": self.per_million_trained_tokens,
            "1m_rollout_tokens": self.per_million_rollout_tokens,
            "held_out_point": self.per_point,
        }
        return {
            "prices": None if self.prices is None else asdict(self.prices),
            "total": asdict(self.amount()),
            "useful_share": self.statement.useful_share,
            "uses": {str(use): asdict(self.amount(use)) for use in Use},
            "accounts": [
                {
                    "slot_type": slot_type,
                    "role": role,
                    **asdict(self.amount(slot_type=slot_type, role=role)),
                    "uses": {
                        str(use): amount.gpu_hours
                        for use in Use
                        if (amount := self.amount(use, slot_type=slot_type, role=role)).gpu_hours
                    },
                }
                for slot_type, role in accounts
            ],
            "per": {name: None if amount is None else asdict(amount) for name, amount in units.items()},
            "num_steps": self.statement.num_steps,
            "num_trained_tokens": self.statement.num_trained_tokens,
            "num_generated_tokens": self.statement.num_generated_tokens,
        }


def money_of(gpu_hours: Mapping[str, float], prices: Prices | None) -> float | None:
    """What hours by type of slot cost; None where one that has any has no price."""
    if prices is None:
        return None
    costs = [(used, prices.of(slot_type)) for slot_type, used in gpu_hours.items() if used]
    known = [used * price for used, price in costs if price is not None]
    return sum(known) if len(known) == len(costs) else None
