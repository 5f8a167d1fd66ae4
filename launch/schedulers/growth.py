"""What a job may grow to, in words, before it is submitted. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from rlserve.config import RunConfig
from rlserve.errors import UserError
from rlserve.tracking.cost.prices import Prices


def growth_in_words(config: RunConfig, prices: Prices | None) -> str | None:
    """Slots by type, and what an hour of them costs; None of a run that stays as it is."""
    asks = config.scale_out
    if not asks.is_enabled:
        return None
    begins = Counter[str]()
    for group in () if config.pool.slots == "auto" else config.pool.slots:
        begins[group.type] += group.count
    most = {**begins, **asks.max_slots}
    slots = f"begins with {_slots(begins)} and may grow to {_slots(most)}" if begins else f"may grow to {_slots(most)}"
    return f"{slots}; {_costs(begins, most, asks.money_per_hour, prices)}"


def refuse_growth(config: RunConfig, scheduler: str) -> None:
    """For a scheduler whose jobs have the machines that they begin with.

    Raises:
        UserError: the run would ask for more, and nobody would hear it.
    """
    if config.scale_out.is_enabled:
        raise UserError(
            f"scale_out.max_slots needs Ray's autoscaler, which a job of {scheduler} has none of: leave it out, or "
            "submit to a cluster that has one (--to kubernetes, --to ray)"
        )


def _costs(begins: Mapping[str, int], most: Mapping[str, int], budget: float | None, prices: Prices | None) -> str:
    if prices is None:
        return "what they cost is not known without cost.prices"
    missing = sorted(name for name in most if prices.of(name) is None)
    if missing:
        return f"what they cost is not known without a price for {', '.join(missing)} in the file of cost.prices"
    first, last = (sum(count * (prices.of(name) or 0.0) for name, count in each.items()) for each in (begins, most))
    unit = prices.currency
    cost = f"they cost {first:.2f} to {last:.2f} {unit} an hour" if begins else f"they cost {last:.2f} {unit} an hour"
    if budget is None:
        return cost
    if budget < last:
        return f"{cost}, of which at most {budget:.2f} are spent (scale_out.money_per_hour)"
    return f"{cost}, within scale_out.money_per_hour={budget:g}"


def _slots(slots: Mapping[str, int]) -> str:
    return ", ".join(f"{count} × {name}" for name, count in slots.items())
