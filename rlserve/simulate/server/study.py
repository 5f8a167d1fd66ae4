"""A load with the configured scaling and with each fixed number of replicas: what it costs, what clients feel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from rich.table import Table

from rlserve.serving.scaling.base import ScalingPolicy
from rlserve.simulate.server.simulation import Change, ServerResult, ServerScenario, simulate_server


@dataclass(frozen=True, kw_only=True)
class Deadlines:
    """What a client is to feel."""

    time_to_first_token_s: float
    time_per_output_token_s: float


@dataclass(frozen=True, kw_only=True)
class ServerRow:
    """One way to have replicas."""

    name: str
    num_replicas_mean: float
    num_replicas_max: int
    gpu_hours: float
    cost: float | None
    """None without a price."""
    attained_share: float
    """Of the requests, those that kept to both deadlines."""
    time_to_first_token_mean_s: float
    time_to_first_token_p95_s: float
    time_per_output_token_p95_s: float
    changes: Sequence[Change]


def study_server(
    scenario: ServerScenario,
    policy: ScalingPolicy[Any] | None,
    deadlines: Deadlines,
    *,
    num_gpus: int,
    price: float | None,
    fixed: Sequence[int],
) -> list[ServerRow]:
    """The policy first, if there is one; then each fixed number.

    Args:
        num_gpus: of a replica.
        price: of a GPU for an hour.
    """
    named = [] if policy is None else [("scaling", simulate_server(scenario, policy))]
    named += [
        (f"{number} fixed", simulate_server(replace(scenario, num_replicas=number, most=number), None))
        for number in fixed
    ]
    return [_row(name, result, deadlines, num_gpus, price) for name, result in named]


def _row(name: str, result: ServerResult, deadlines: Deadlines, num_gpus: int, price: float | None) -> ServerRow:
    first_s = np.array([served.time_to_first_token_s for served in result.served], dtype=np.float64)
    per_token_s = np.array([served.time_per_output_token_s for served in result.served], dtype=np.float64)
    attained = (first_s <= deadlines.time_to_first_token_s) & (per_token_s <= deadlines.time_per_output_token_s)
    gpu_hours = num_gpus * result.replica_s / 3600
    return ServerRow(
        name=name,
        num_replicas_mean=result.replica_s / result.end_s,
        num_replicas_max=max(change.num_wanted for change in result.changes),
        gpu_hours=gpu_hours,
        cost=None if price is None else price * gpu_hours,
        attained_share=float(attained.mean()),
        time_to_first_token_mean_s=float(first_s.mean()),
        time_to_first_token_p95_s=float(np.quantile(first_s, 0.95)),
        time_per_output_token_p95_s=float(np.quantile(per_token_s, 0.95)),
        changes=result.changes,
    )


def server_table(rows: Sequence[ServerRow]) -> Table:
    """A row each."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    headings = (
        "replicas",
        "mean",
        "max",
        "GPU-hours",
        "cost",
        "attained",
        "TTFT mean",
        "TTFT p95",
        "TPOT p95",
        "changes",
    )
    for heading in headings:
        table.add_column(heading, justify="left" if heading == "replicas" else "right", no_wrap=True)
    for row in rows:
        table.add_row(
            row.name,
            f"{row.num_replicas_mean:.2f}",
            str(row.num_replicas_max),
            f"{row.gpu_hours:.2f}",
            "-" if row.cost is None else f"{row.cost:.2f}",
            f"{row.attained_share:.1%}",
            f"{row.time_to_first_token_mean_s:.2f} s",
            f"{row.time_to_first_token_p95_s:.2f} s",
            f"{1e3 * row.time_per_output_token_p95_s:.1f} ms",
            str(len(row.changes) - 1),
        )
    return table
