"""``rlserve move``: which gangs a running run has, and bringing one into another role by hand."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from rlserve.cli.places import DEFAULT_OUTPUT_DIR, open_run
from rlserve.errors import UserError
from rlserve.tracking.move_requests import Action, GangStatus, MoveAnswer, ask

_EXAMPLES = """\
examples:
  rlserve move latest                    the gangs of the newest run, and their roles
  rlserve move latest cpu/1 rollout      let this gang roll out
  rlserve move latest --release          let the policy decide again

A gang is the slots that move together, and has the name of its slot where it has but one. The policy changes nothing
for pool.move_hold_s after a move by hand, unless a gang is lost, leaves or joins.
"""


def run(arguments: Sequence[str]) -> int:
    """Ask a run, and print what it says."""
    parser = _parser()
    parsed = parser.parse_args(arguments)
    if (parsed.role is None) != (parsed.gang is None or parsed.release):
        parser.error("give a gang and a role, a gang with --release, or neither")
    folder = open_run(parsed.run, parsed.output_dir)
    action: Action = "release" if parsed.release else "show" if parsed.gang is None else "move"
    answer = ask(folder, action, parsed.gang, parsed.role, timeout_s=parsed.timeout)
    if answer.outcome == "refused":
        raise UserError(f"{folder.name} refused: {answer.message}")
    if action == "show":
        Console().print(_table(answer))
    else:
        Console().print(Text(answer.message))
    return 0


def _table(answer: MoveAnswer) -> Table:
    table = Table(box=None, pad_edge=False)
    for title in ("gang", "type", "slots", "role", ""):
        table.add_column(title)
    for gang in answer.gangs:
        table.add_row(gang.id, gang.type, str(gang.num_slots), gang.state.replace("_", " "), _note(gang))
    return table


def _note(gang: GangStatus) -> str:
    if gang.leaving is not None:
        return f"leaves: {gang.leaving}"
    return "" if gang.held_s is None else f"moved by hand, held for another {gang.held_s:.0f} s"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="rlserve move",
        description="Print the gangs of a running run and their roles, or bring one into another role. Safe at any "
        "time: the run waits until no other move is under way, and refuses what would leave a role empty.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run", metavar="RUN", help="its folder, its name, or latest")
    parser.add_argument("gang", nargs="?", metavar="GANG", help="a gang, or one of its slots")
    parser.add_argument("role", nargs="?", choices=("rollout", "train"), help="what it is to do")
    parser.add_argument(
        "--release", action="store_true", help="let the policy decide again about GANG, or about all that was moved"
    )
    parser.add_argument(
        "--timeout", type=float, default=300.0, metavar="SECONDS", help="longest wait for an answer (300)"
    )
    parser.add_argument(
        "--output-dir", default=DEFAULT_OUTPUT_DIR, metavar="DIR", help=f"where runs lie ({DEFAULT_OUTPUT_DIR})"
    )
    return parser
