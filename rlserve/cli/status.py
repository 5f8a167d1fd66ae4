"""``rlserve status``: how one run stands, and how to go on with it."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict

from rich.console import Console
from rich.table import Table
from rich.text import Text

from rlserve.cli.checkpoints import newest_sealed
from rlserve.cli.list import STATE_STYLES, age, score_change, step_of
from rlserve.cli.places import DEFAULT_OUTPUT_DIR, find_sweep, open_run
from rlserve.errors import UserError
from rlserve.tracking.progress import format_duration
from rlserve.tracking.run_folder import RunFolder
from rlserve.tracking.run_state import RunState, read_run_state

_EXAMPLES = """\
examples:
  rlserve status                 the newest run
  rlserve status my-run
  rlserve status my-run --json | jq .step
  watch -n 5 rlserve status
"""


def run(arguments: Sequence[str]) -> int:
    """Print how a run stands."""
    parsed = _parser().parse_args(arguments)
    sweep = find_sweep(parsed.run, parsed.output_dir)
    if sweep is not None:
        from rlserve.cli.sweep_runs import print_status

        print_status(sweep, as_json=parsed.json)
        return 0
    folder = open_run(parsed.run, parsed.output_dir)
    state, checkpoint, job = read_run_state(folder), newest_sealed(folder), job_line(folder)
    ended = state.state not in ("waiting", "running", "finished")
    command = resume_command(folder, job is not None) if checkpoint is not None and ended else None
    if parsed.json:
        more = {"checkpoint": None if checkpoint is None else str(checkpoint), "resume_command": command, "job": job}
        sys.stdout.write(json.dumps({**asdict(state), **more}, indent=2) + "\n")
        return 0
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    found = ("checkpoint", "none yet" if checkpoint is None else checkpoint), ("job", job)
    for label, text in (*_rows(state, time.time()), *((label, text) for label, text in found if text is not None)):
        style = STATE_STYLES[state.state] if label == "state" else "red" if label == "last error" else ""
        table.add_row(label, Text(str(text), style))
    console = Console()
    console.print(Text(state.name, "bold"))
    console.print(table)
    if command is not None:
        console.print(Text(f"go on with: {command}"), soft_wrap=True)
    return 0


def resume_command(folder: RunFolder, is_submitted: bool = False) -> str:
    """What takes the run up again, from any folder."""
    return shlex.join(["rlserve", *(["resume"] if is_submitted else ["launch", "--resume"]), str(folder.path)])


def job_line(folder: RunFolder) -> str | None:
    """The run's job as its scheduler has it; None where the run was not submitted."""
    if not folder.job_file.exists():
        return None
    from rlserve.launch.schedulers.submission import job_of  # only now: it needs the whole configuration

    found = job_of(folder)
    assert found is not None
    scheduler, job = found
    try:
        state = scheduler.state(job)
    except UserError as error:  # the run's folder still tells
        return f"{job.scheduler} {job.id}: {error}"
    return f"{job.scheduler} {job.id}: {'ended, and forgotten' if state is None else state.detail}"


def _rows(state: RunState, now_s: float) -> Iterator[tuple[str, str]]:
    by = f" ({state.owner})" if state.owner is not None else ""
    yield "state", {"dead": f"dead{by}: its process is gone"}.get(state.state, f"{state.state}{by}")
    left = "" if state.time_left_s is None else f", about {format_duration(state.time_left_s)} left"
    yield "step", f"{step_of(state)}{left}"
    yield "held-out", score_change(state)
    yield "reward", _number(state.reward, ".3f")
    yield "KL", _number(state.kl, ".4f")
    yield "queue", "-" if state.queue_length is None else f"{state.queue_length} prompt groups wait"
    yield "slots", ", ".join(f"{number} {owner}" for owner, number in state.slots.items() if number) or "-"
    yield "last decision", state.last_decision or "-"
    if state.server is not None:
        yield "clients", state.server
    if state.last_error is not None:
        yield "last error", state.last_error
    yield "written", f"{age(now_s - state.written_s)} ago, begun {age(now_s - state.begun_s)} ago"
    yield "folder", state.path


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="rlserve status",
        description="Print how a run stands: its state, step, time left, reward, queue, slots, last decision and "
        "error, and the checkpoint to go on from.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "run", nargs="?", default="latest", metavar="RUN", help="its folder, its name, latest, or a sweep"
    )
    parser.add_argument(
        "--output-dir", default=DEFAULT_OUTPUT_DIR, metavar="DIR", help=f"where runs lie ({DEFAULT_OUTPUT_DIR})"
    )
    parser.add_argument("--json", action="store_true", help="print a JSON object of all that is known of it")
    return parser
