"""``rlserve cost``: what a run's time went into and what it cost, or whether a change paid."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from rich.console import Console

from rlserve.cli.places import DEFAULT_OUTPUT_DIR, open_run
from rlserve.errors import UserError
from rlserve.tracking.cost.reading import RunCost, read_cost
from rlserve.tracking.cost.tables import cost_tables

_EXAMPLES = """\
examples:
  rlserve cost                               the newest run, also while it goes on
  rlserve cost my-run --prices prices.yaml   in money, at these prices
  rlserve cost my-run --json | jq .uses
  rlserve cost before after                  whether a trained token became cheaper
"""


def run(arguments: Sequence[str]) -> int:
    """Print what a run cost, or what two did."""
    parsed = _parser().parse_args(arguments)
    costs = [read_cost(open_run(name, parsed.output_dir), parsed.prices) for name in parsed.runs or ["latest"]]
    match costs:
        case [cost]:
            _print_one(cost, as_json=parsed.json)
        case [before, after]:
            _print_two(before, after, as_json=parsed.json)
        case _:
            raise UserError(f"one run, or two to compare, not {len(costs)}")
    return 0


def _print_one(cost: RunCost, *, as_json: bool) -> None:
    if as_json:
        found = {"run": cost.state.name, "state": cost.state.state, **cost.figures.to_dict()}
        found["interruptions"] = [{**asdict(each), "lost_s": each.lost_s} for each in cost.interruptions]
        sys.stdout.write(json.dumps(found, indent=2) + "\n")
        return
    console = Console()
    for table in cost_tables(cost):
        console.print(table)


def _print_two(before: RunCost, after: RunCost, *, as_json: bool) -> None:
    # NumPy, which they need, takes longer than all else.
    from rlserve.tracking.cost.comparison_tables import comparison_data, comparison_tables

    if as_json:
        sys.stdout.write(json.dumps(comparison_data(before, after), indent=2) + "\n")
        return
    console = Console()
    for table in comparison_tables(before, after):
        console.print(table)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="rlserve cost",
        description="Print what the time of a run's slots went into, what of it was useful, and what a step, a million "
        "tokens and a point of the held-out score cost. In GPU-hours, and in money where prices are given. Then "
        "how many minutes each interruption took, from the run's last record until it got further than before. Of two "
        "runs: what changed from the first to the second, and whether chance alone explains it.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("runs", nargs="*", metavar="RUN", help="folder, name, or latest (latest); two are compared")
    parser.add_argument("--prices", type=Path, metavar="FILE", help="prices to count with (those of the run)")
    parser.add_argument(
        "--output-dir", default=DEFAULT_OUTPUT_DIR, metavar="DIR", help=f"where runs lie ({DEFAULT_OUTPUT_DIR})"
    )
    parser.add_argument("--json", action="store_true", help="print a JSON object of all of it")
    return parser
