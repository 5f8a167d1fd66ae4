"""What two runs cost, side by side, and what can be said of the difference."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from rlserve.tracking.cost.comparison import LEVEL, MIN_NUM_STEPS, Comparison, Interval, compare_costs
from rlserve.tracking.cost.figures import Amount
from rlserve.tracking.cost.prices import Prices
from rlserve.tracking.cost.reading import RunCost
from rlserve.tracking.cost.tables import format_number
from rlserve.tracking.cost.uses import USEFUL, Use


def comparison_tables(before: RunCost, after: RunCost) -> Iterator[RenderableType]:
    """Unit costs, what the time went into, and the verdict."""
    prices, unit = _common_prices(before, after), _unit(before, after)
    yield _units(before, after, in_money=prices is not None, unit=unit)
    yield _uses(before, after)
    found = compare_costs(before.steps, after.steps, prices)
    yield Text(_too_short(before, after) if found is None else _verdict(found, unit))
    if prices is None and before.figures.slot_types != after.figures.slot_types:
        types = [", ".join(run.figures.slot_types) for run in (before, after)]
        yield Text(
            f"the runs had other slots ({types[0]}; {types[1]}): without prices an hour of each is alike", "yellow"
        )


def comparison_data(before: RunCost, after: RunCost) -> dict[str, Any]:
    """The same for programs."""
    prices = _common_prices(before, after)
    found = compare_costs(before.steps, after.steps, prices)
    return {
        "runs": [{"run": each.state.name, **each.figures.to_dict()} for each in (before, after)],
        "unit": _unit(before, after),
        "level": LEVEL,
        "per_1m_trained_tokens": None
        if found is None
        else {**asdict(found), "is_distinguishable": found.is_distinguishable},
    }


def _common_prices(before: RunCost, after: RunCost) -> Prices | None:
    """Those that both are counted with: two price lists would compare the lists."""
    first, second = before.figures, after.figures
    is_priced = first.prices == second.prices and not first.without_price and not second.without_price
    return first.prices if is_priced else None


def _unit(before: RunCost, after: RunCost) -> str:
    prices = _common_prices(before, after)
    return "GPU-hours" if prices is None else prices.currency


def _units(before: RunCost, after: RunCost, *, in_money: bool, unit: str) -> Table:
    table = _table(f"{unit} for", before, after)
    first, second = before.figures, after.figures
    rows = (
        ("the run", first.amount(), second.amount()),
        ("a training step", first.per_step, second.per_step),
        ("1M tokens trained", first.per_million_trained_tokens, second.per_million_trained_tokens),
        ("1M tokens rolled out", first.per_million_rollout_tokens, second.per_million_rollout_tokens),
        ("a point of held-out score", first.per_point, second.per_point),
    )
    for name, *amounts in rows:
        values = [_value(amount, in_money=in_money) for amount in amounts]
        cells = ["-" if value is None else format_number(value) for value in values]
        old, new = values
        table.add_row(name, *cells, f"{new / old - 1:+.1%}" if old and new is not None else "-")
    return table


def _value(amount: Amount | None, *, in_money: bool) -> float | None:
    return None if amount is None else amount.money if in_money else amount.gpu_hours


def _uses(before: RunCost, after: RunCost) -> Table:
    table = _table("share of the time", before, after)
    statements = [run.figures.statement for run in (before, after)]
    for use in Use:
        shares = [each.hours_of(use) / each.gpu_hours if each.gpu_hours else 0.0 for each in statements]
        if any(shares):
            name = Text(str(use).replace("_", " "), "green" if use in USEFUL else "")
            table.add_row(name, *(f"{share:.1%}" for share in shares), f"{100 * (shares[1] - shares[0]):+.1f} points")
    return table


def _table(first: str, before: RunCost, after: RunCost) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), header_style="dim")
    table.add_column(first)
    for name in (before.state.name, after.state.name, "change"):
        table.add_column(name, justify="right")
    return table


def _too_short(before: RunCost, after: RunCost) -> str:
    num_steps = min(len(run.steps) for run in (before, after))
    return (
        f"whether chance alone explains the difference cannot be told: each run needs {MIN_NUM_STEPS} steps after its "
        f"first, and one has {max(num_steps - 1, 0)}"
    )


def _verdict(found: Comparison, unit: str) -> str:
    change = found.change
    costs = f"{_range(found.before)} → {_range(found.after)} {unit}"
    relative = f"{change.value:+.1%} ({change.low:+.1%} to {change.high:+.1%})"
    head = f"1M tokens trained, after the first step: {costs}; {relative}"
    if not found.is_distinguishable:
        return f"{head}: not distinguishable from no change, at {LEVEL:.0%}"
    saved = f"{'saved' if found.saved > 0 else 'cost'} {format_number(abs(found.saved))} {unit}"
    return f"{head}: the change {saved} over the second run's tokens"


def _range(interval: Interval) -> str:
    return f"{format_number(interval.value)} ({format_number(interval.low)} to {format_number(interval.high)})"
