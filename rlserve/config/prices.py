"""What can be said of the prices before a run begins: ``cost.prices``, and whether a budget in money can be watched."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from rlserve.config.tree import RunConfig
from rlserve.errors import UserError
from rlserve.tracking.cost.budget import check_priced
from rlserve.tracking.cost.prices import Prices, read_prices


def check_prices(config: RunConfig) -> Prices | None:
    """The prices that the configuration names; None where it names none.

    Raises:
        UserError: the file cannot be read or is not of its form, or lacks a type of the pool that a budget needs, or
            the pool costs more an hour than it may.
    """
    source = config.cost.prices
    prices = None if source is None else read_prices(Path(source))
    if config.pool.slots != "auto":
        check_priced(config.cost.budget, prices, (group.type for group in config.pool.slots))
        slots = Counter[str]()
        for group in config.pool.slots:
            slots[group.type] += group.count
        check_hourly(config, prices, slots)
    return prices


def check_hourly(config: RunConfig, prices: Prices | None, slots: Mapping[str, int]) -> None:
    """Refuse a budget of an hour that could not be kept; ``slots`` are those that the run begins with, by type.

    Raises:
        UserError: a type has no price, or these slots cost more already.
    """
    budget = config.scale_out.money_per_hour
    if budget is None or not config.scale_out.is_enabled:
        return
    found = {name: None if prices is None else prices.of(name) for name in (*slots, *config.scale_out.max_slots)}
    missing = sorted(name for name, price in found.items() if price is None)
    if missing:
        raise UserError(
            f"scale_out.money_per_hour needs a price for {', '.join(missing)}: add it to the file of cost.prices"
        )
    begins_at = sum(count * (found[name] or 0.0) for name, count in slots.items())
    if begins_at > budget:
        raise UserError(
            f"scale_out.money_per_hour must be at least {begins_at:g}, which the slots cost that the run begins with, "
            f"got {budget:g}"
        )
