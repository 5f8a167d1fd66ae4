"""What ``rlserve status`` and ``rlserve resume`` do with all runs of a sweep."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict

from rich.console import Console
from rich.table import Table
from rich.text import Text

from rlserve.cli.list import STATE_STYLES, score_change, step_of
from rlserve.cli.status import job_line
from rlserve.cli.sweep import run_in_turn
from rlserve.errors import UserError
from rlserve.tracking.run_state import RunState, read_run_state
from rlserve.tracking.sweep_record import Sweep, SweepMember

_NOT_BEGUN = "not begun"


def print_status(sweep: Sweep, *, as_json: bool) -> None:
    """Print how each run of a sweep stands, and what its scheduler says of it."""
    table = Table(box=None, header_style="dim", pad_edge=False)
    for heading in ("run", "state", "step", "held-out", "job", "values"):
        table.add_column(heading, justify="right" if heading == "step" else "left", overflow="fold")
    found = []
    for member in sweep.members:
        folder, name = sweep.run_folder(member), sweep.run_path(member).name
        state = None if folder is None else read_run_state(folder)
        job = None if folder is None else job_line(folder)
        values = shlex.join(member.overrides[:-1])
        found.append(
            {"name": name, "overrides": member.overrides, **({} if state is None else asdict(state)), "job": job}
        )
        if state is None:
            table.add_row(name, Text(_NOT_BEGUN, "dim"), "-", "-", "-", Text(values))
            continue
        label = Text(state.state, STATE_STYLES[state.state])
        table.add_row(name, label, step_of(state), score_change(state), Text(job or "-"), Text(values))
    if as_json:
        sys.stdout.write(json.dumps(found, indent=2) + "\n")
    else:
        Console().print(table)


def resume_all(sweep: Sweep, overrides: Sequence[str]) -> int:
    """Take up again what has not finished, by the scheduler that has it or on this machine."""
    folders = list(sweep.begun())
    if any(folder.job_file.exists() for folder in folders):
        return _resubmit_all(sweep, overrides)
    states = {folder.name: read_run_state(folder) for folder in folders}
    living = [name for name, state in states.items() if state.state == "running"]
    if living:
        raise UserError(f"{sweep.name} is still being run: {living[0]}")
    left = [member for member in sweep.members if not _has_finished(states.get(sweep.run_path(member).name))]
    if not left:
        raise UserError(f"all runs of {sweep.name} have finished")
    return run_in_turn(left, lambda member: _launch(sweep, member, overrides))


def _resubmit_all(sweep: Sweep, overrides: Sequence[str]) -> int:
    from rlserve.launch.schedulers.sweeps import resubmit_sweep

    rendered, folders = resubmit_sweep(sweep, overrides)
    if rendered.remark is not None:
        sys.stderr.write(f"{rendered.remark}\n")
    for folder, job in rendered.submit_into(sweep.path, folders):
        sys.stdout.write(f"{folder.name}: {job.scheduler} job {job.id}\n")
        sys.stdout.flush()
    return 0


def _has_finished(state: RunState | None) -> bool:
    return state is not None and state.state == "finished"


def _launch(sweep: Sweep, member: SweepMember, overrides: Sequence[str]) -> int:
    """``--continue`` begins a run, or goes on with it."""
    place = f"output_dir={sweep.path.parent}"
    words = ["launch", sweep.config, *member.overrides, place, *overrides, "--continue"]
    return subprocess.run([sys.executable, "-m", "rlserve", *words]).returncode
