"""The results of a study as a table for people and as plain data for programs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich.table import Table

from rlserve.simulate.intervals import Estimate
from rlserve.simulate.purchase import TriedOffer
from rlserve.simulate.study import PolicyResult, StudyResult


def study_table(result: StudyResult) -> Table:
    """A row a policy, the best static split first."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    headings = ("policy", "groups/s", "tokens/s", "% of oracle", "% of best", "moves/h", "wait", "bubble", "stale")
    grows = any(policy.num_grown.high for policy in result.policies)
    for heading in (*headings, *(("grown",) if grows else ()), f"{result.cost_unit}/1M"):
        table.add_column(heading, justify="left" if heading == "policy" else "right", no_wrap=True)
    for policy in result.policies:
        staleness = sum(age * share for age, share in policy.staleness.items())
        table.add_row(
            policy.name,
            _with_interval(policy.groups_per_s, ".3f"),
            f"{policy.tokens_per_s.mean:,.0f}",
            _percent(policy.of_oracle),
            _percent(policy.of_best_static),
            f"{policy.moves_per_hour.mean:.1f}",
            f"{policy.wait_share.mean:.0%}",
            f"{policy.bubble_share.mean:.0%}",
            f"{staleness:.2f}",
            *((f"{policy.num_grown.mean:.1f}",) if grows else ()),
            f"{policy.cost_per_million.mean:.4g}",
        )
    return table


def offers_table(tried: Sequence[TriedOffer], currency: str) -> Table:
    """A row a pool that could be rented, the cheapest token first."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for heading in ("pool", f"{currency}/h", "groups/s at most", "tokens/s", f"{currency}/1M"):
        table.add_column(heading, justify="left" if heading == "pool" else "right", no_wrap=True)
    for each in sorted(tried, key=lambda one: one.cost_per_million):
        table.add_row(
            each.offer.name,
            f"{each.offer.money_per_hour:.2f}",
            f"{each.offer.groups_per_s:.3f}",
            f"{each.tokens_per_s:,.0f}",
            f"{each.cost_per_million:.4g}",
        )
    return table


def study_data(result: StudyResult) -> dict[str, Any]:
    """Everything in the table, and the split by split, as JSON has it."""
    return {
        "oracle_groups_per_s": result.oracle_groups_per_s,
        "best_static_num_rollout": result.best_num_rollout,
        "cost_unit": result.cost_unit,
        "static_groups_per_s": {str(number): rate for number, rate in result.splits.items()},
        "policies": {policy.name: _policy_data(policy) for policy in result.policies},
    }


def _policy_data(policy: PolicyResult) -> dict[str, Any]:
    data = {name: asdict(value) for name in vars(policy) if isinstance(value := getattr(policy, name), Estimate)}
    return {
        **data,
        "staleness": {str(age): share for age, share in policy.staleness.items()},
        "peak_per_hour_by_seed": [run.peak_per_hour for run in policy.runs],
        "groups_per_s_by_seed": [run.groups_per_s for run in policy.runs],
        "speed": sum(run.duration_s for run in policy.runs) / max(sum(run.host_s for run in policy.runs), 1e-9),
    }


def _percent(value: Estimate) -> str:
    return _with_interval(Estimate(100 * value.mean, 100 * value.low, 100 * value.high), ".1f")


def _with_interval(value: Estimate, form: str) -> str:
    text = format(value.mean, form)
    if value.high == value.low:
        return text
    return f"{text} ± {format((value.high - value.low) / 2, form)}"
