"""``rlserve cost``: what a run's time went into, and what it cost."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from rlserve.cli.places import DEFAULT_OUTPUT_DIR, open_run
from rlserve.tracking.cost.reading import read_cost
from rlserve.tracking.cost.tables import cost_tables

_EXAMPLES = """\
examples:
  rlserve cost                               the newest run, also while it goes on
  rlserve cost my-run --prices prices.yaml   in money, at these prices
  rlserve cost my-run --json | jq .uses
"""


def run(arguments: Sequence[str]) -> int:
    """Print what a run cost."""
    parsed = _parser().parse_args(arguments)
    cost = read_cost(open_run(parsed.run, parsed.output_dir), parsed.prices)
    if parsed.json:
        found = {"run": cost.state.name, "state": cost.state.state, **cost.figures.to_dict()}
        sys.stdout.write(json.dumps(found, indent=2) + "\n")
        return 0
    console = Console()
    for table in cost_tables(cost):
        console.print(table)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="rlserve cost",
        description="Print what the time of a run's slots went into, what of it was useful, and what a step, a million "
        "tokens and a point of the held-out score cost. In GPU-hours, and in money where prices are given.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run", nargs="?", default="latest", metavar="RUN", help="its folder, its name, or latest")
    parser.add_argument("--prices", type=Path, metavar="FILE", help="prices to count with (those of the run)")
    parser.add_argument(
        "--output-dir", default=DEFAULT_OUTPUT_DIR, metavar="DIR", help=f"where runs lie ({DEFAULT_OUTPUT_DIR})"
    )
    parser.add_argument("--json", action="store_true", help="print a JSON object of all of it")
    return parser
