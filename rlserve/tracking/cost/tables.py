"""What a run cost, as a person reads it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from rlserve.tracking.cost.figures import Amount, CostFigures
from rlserve.tracking.cost.interruptions import Interruption
from rlserve.tracking.cost.reading import RunCost
from rlserve.tracking.cost.uses import MEANING, USEFUL, Use


def cost_tables(cost: RunCost) -> Iterator[RenderableType]:
    """By type and role, by what it was used for, and of one of anything."""
    figures = cost.figures
    yield Text(f"{cost.state.name} ({cost.state.state})", "bold")
    for line in _remarks(figures):
        yield Text(line, "yellow")
    yield _by_account(figures)
    yield _by_use(figures)
    yield _units(figures)
    if cost.interruptions:
        yield _interruptions(cost.interruptions)


def amount_cells(amount: Amount | None, figures: CostFigures) -> list[str]:
    """GPU-hours, and money where there are prices."""
    cells = ["-" if amount is None else format_number(amount.gpu_hours)]
    if figures.prices is not None:
        cells.append("-" if amount is None or amount.money is None else format_number(amount.money))
    return cells


def format_number(value: float) -> str:
    """Four digits that mean something, and all before the point."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _remarks(figures: CostFigures) -> Iterator[str]:
    if figures.without_price:
        yield f"no price is given for {', '.join(figures.without_price)}: sums with their time are in GPU-hours alone"


def _table(figures: CostFigures, *columns: str) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), title_justify="left", header_style="dim")
    for column in columns:
        table.add_column(column)
    table.add_column("GPU-hours", justify="right")
    if figures.prices is not None:
        table.add_column(figures.prices.currency, justify="right")
    return table


def _share(part: Amount, whole: Amount) -> str:
    return f"{part.gpu_hours / whole.gpu_hours:.1%}" if whole.gpu_hours else "-"


def _by_account(figures: CostFigures) -> Table:
    table = _table(figures, "type", "role")
    table.add_column("share", justify="right")
    table.add_column("useful", justify="right")
    whole = figures.amount()
    for slot_type, role in sorted({(each.slot_type, each.role) for each in figures.statement.owned_ns}):
        amount = figures.amount(slot_type=slot_type, role=role)
        if not amount.gpu_hours:
            continue
        useful = figures.amount(*USEFUL, slot_type=slot_type, role=role)
        shares = (_share(amount, whole), _share(useful, amount) if role in ("train", "rollout") else "-")
        table.add_row(slot_type, role, *amount_cells(amount, figures), *shares)
    table.add_section()
    table.add_row("all", "", *amount_cells(whole, figures), "100.0%", _share(figures.amount(*USEFUL), whole))
    return table


def _by_use(figures: CostFigures) -> Table:
    table = _table(figures, "used for")
    table.add_column("share", justify="right")
    table.add_column("")
    whole = figures.amount()
    for use in Use:
        amount = figures.amount(use)
        if amount.gpu_hours:
            name = Text(str(use).replace("_", " "), "green" if use in USEFUL else "")
            table.add_row(name, *amount_cells(amount, figures), _share(amount, whole), Text(MEANING[use], "dim"))
    return table


def _units(figures: CostFigures) -> Table:
    table, statement = _table(figures, "one"), figures.statement
    table.add_column("")
    rows = (
        ("training step", figures.per_step, f"{statement.num_steps:,} steps"),
        ("1M tokens trained", figures.per_million_trained_tokens, f"{statement.num_trained_tokens:,} tokens"),
        ("1M tokens rolled out", figures.per_million_rollout_tokens, f"{statement.num_generated_tokens:,} tokens"),
        ("point of held-out score", figures.per_point, _points(figures)),
    )
    for name, amount, of in rows:
        table.add_row(name, *amount_cells(amount, figures), Text(of, "dim"))
    return table


def _interruptions(found: Sequence[Interruption]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), header_style="dim")
    table.add_column("interrupted")
    table.add_column("by")
    for column in ("away", "start", "again", "lost"):
        table.add_column(column, justify="right")
    table.add_column("")
    for each in found:
        times = [_minutes(time_s) for time_s in (each.away_s, each.start_s, each.again_s, each.lost_s)]
        remark = f"minutes{'' if each.is_over else ' so far'}, {each.num_again} steps again"
        table.add_row(f"step {each.step}", each.ended_by, *times, Text(remark, "dim"))
    if len(found) > 1:
        table.add_row("all", *[""] * 4, _minutes(sum(each.lost_s for each in found)), Text("minutes", "dim"))
    return table


def _minutes(time_s: float) -> str:
    return f"{time_s / 60:.2f}"


def _points(figures: CostFigures) -> str:
    before, after, points = figures.scores.before, figures.scores.after, figures.scores.points
    return "no score" if points is None else f"{before:.3f} to {after:.3f}, {points:+.1f} points"
