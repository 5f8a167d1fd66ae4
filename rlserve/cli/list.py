"""``rlserve list``: the runs of a folder and how they stand."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from rlserve.cli.places import DEFAULT_OUTPUT_DIR
from rlserve.errors import DataError
from rlserve.tracking.run_folder import RunFolder
from rlserve.tracking.run_state import RunState, State, find_runs, read_run_state
from rlserve.tracking.summary import format_score

STATE_STYLES: dict[State, str] = {
    "waiting": "cyan",
    "running": "green",
    "finished": "",
    "stopped": "yellow",
    "failed": "red",
    "dead": "red",
}
_EXAMPLES = """\
examples:
  rlserve list
  rlserve list --output-dir /data/runs
  rlserve list --json | jq -r '.[] | select(.state == "running") | .path'
"""
_STATES = """\
states: waiting: submitted, not begun; running; finished: all steps done; stopped: by a signal, with a checkpoint;
failed: ended with an error; dead: its process vanished without a word. The last three can be resumed if they have a
checkpoint.
"""


def run(arguments: Sequence[str]) -> int:
    """Print the runs, the one begun last first."""
    parsed = _parser().parse_args(arguments)
    states = [state for folder in find_runs(Path(parsed.output_dir)) if (state := _read(folder)) is not None]
    states.sort(key=lambda state: state.begun_s, reverse=True)
    if parsed.json:
        sys.stdout.write(json.dumps([asdict(state) for state in states], indent=2) + "\n")
    elif not states:
        sys.stdout.write(f"no runs in {parsed.output_dir}/\n")
    else:
        Console().print(_table(states, time.time()))
    return 0


def score_change(state: RunState) -> str:
    """``0.305 → 0.970``."""
    before, after = (
        "-" if score is None else format_score(score, num_digits=3)
        for score in (state.held_out_before, state.held_out_after)
    )
    return f"{before} → {after}"


def step_of(state: RunState) -> str:
    """``12/60``."""
    return f"{state.step}/{'?' if state.num_steps is None else state.num_steps}"


def age(seconds: float) -> str:
    """``40 s``, ``5 min``, ``3 h``, ``12 days``."""
    for unit, unit_s, most in (("s", 1, 90), ("min", 60, 90), ("h", 3600, 48)):
        if seconds / unit_s < most:
            return f"{max(seconds, 0) / unit_s:.0f} {unit}"
    return f"{seconds / 86400:.0f} days"


def _read(folder: RunFolder) -> RunState | None:
    """One damaged run must not hide the others."""
    try:
        return read_run_state(folder)
    except DataError as error:
        sys.stderr.write(f"{folder.name} is left out: {error}\n")
        return None


def _table(states: Sequence[RunState], now_s: float) -> Table:
    table = Table(box=None, header_style="dim", pad_edge=False)
    for heading in ("run", "state", "step", "held-out", "last written", "begun"):
        table.add_column(heading, justify="right" if heading == "step" else "left", overflow="fold")
    for state in states:
        table.add_row(
            Text(state.name),
            Text(state.state, STATE_STYLES[state.state]),
            step_of(state),
            score_change(state),
            f"{age(now_s - state.written_s)} ago",
            f"{age(now_s - state.begun_s)} ago",
        )
    return table


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="rlserve list",
        description="List runs: how they stand, how far they are, what they achieved; the newest first.",
        epilog=_STATES + "\n" + _EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--output-dir", default=DEFAULT_OUTPUT_DIR, metavar="DIR", help=f"where runs lie ({DEFAULT_OUTPUT_DIR})"
    )
    parser.add_argument("--json", action="store_true", help="print a JSON list of all that is known of them")
    return parser
