"""What can be said of the prices before a run begins: ``cost.prices``, and whether a budget in money can be watched."""

from __future__ import annotations

from pathlib import Path

from rlserve.config.tree import RunConfig
from rlserve.tracking.cost.budget import check_priced
from rlserve.tracking.cost.prices import Prices, read_prices


def check_prices(config: RunConfig) -> Prices | None:
    """The prices that the configuration names; None where it names none.

    Raises:
        UserError: the file cannot be read or is not of its form, or lacks a type of the pool that a budget needs.
    """
    source = config.cost.prices
    prices = None if source is None else read_prices(Path(source))
    if config.pool.slots != "auto":
        check_priced(config.cost.budget, prices, (group.type for group in config.pool.slots))
    return prices
