"""``rlserve cancel``: end a run in such a way that it saves."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence

from rlserve.cli.places import DEFAULT_OUTPUT_DIR, find_sweep, open_run
from rlserve.errors import UserError
from rlserve.tracking.owner import find_owner, this_process
from rlserve.tracking.run_folder import RunFolder
from rlserve.tracking.sweep_record import Sweep

_EXAMPLES = """\
examples:
  rlserve cancel latest
  rlserve cancel my-run --wait 300
"""
_POLL_S = 0.2


def run(arguments: Sequence[str]) -> int:
    """Cancel the job of a run, or stop its process."""
    parsed = _parser().parse_args(arguments)
    sweep = find_sweep(parsed.run, parsed.output_dir)
    folders = [open_run(parsed.run, parsed.output_dir)] if sweep is None else _to_cancel(sweep, parsed.here)
    for folder in folders:
        said = _stop_process(folder) if parsed.here else _cancel(folder)
        sys.stdout.write(f"{folder.name}: {said}\n")
        sys.stdout.flush()
    for folder in folders:
        if parsed.wait and not wait_for_end(folder, parsed.wait):
            raise UserError(f"{folder.name} has not ended within {parsed.wait:g} s; it may still be saving")
    return 0


def _to_cancel(sweep: Sweep, here: bool) -> Sequence[RunFolder]:
    """The runs that have not ended, the last first, so that none begins because one before it has ended."""
    from rlserve.launch.schedulers.submission import job_of

    def lives(folder: RunFolder) -> bool:
        found = None if here else job_of(folder)
        if found is not None:
            state = found[0].state(found[1])
            return state is not None and state.stage != "ended"
        owner = find_owner(folder.path)
        return owner is not None and owner[1]

    folders = [folder for folder in sweep.begun() if lives(folder)][::-1]
    if not folders:
        raise UserError(f"no run of {sweep.name} waits or is running")
    return folders


def _cancel(folder: RunFolder) -> str:
    from rlserve.launch.schedulers.submission import job_of

    found = job_of(folder)
    if found is None:
        return _stop_process(folder)
    scheduler, job = found
    scheduler.cancel(job)
    return f"{job.scheduler} job {job.id} is cancelled"


def _stop_process(folder: RunFolder) -> str:
    found = find_owner(folder.path)
    if found is None or not found[1]:
        raise UserError(f"{folder.name} is not running")
    owner = found[0]
    if owner.system != this_process().system:
        raise UserError(f"{folder.name} is run by {owner}: cancel it there")
    os.kill(owner.process_id, signal.SIGTERM)
    return f"{owner} finishes its step and saves"


def wait_for_end(
    folder: RunFolder,
    timeout_s: float,
    *,
    now: Callable[[], float] = time.monotonic,
    wait: Callable[[], object] = lambda: time.sleep(_POLL_S),
) -> bool:
    """Wait until nobody writes to a run; False where somebody still does after ``timeout_s``."""
    deadline_s = now() + timeout_s
    while (found := find_owner(folder.path)) is not None and found[1]:
        if now() >= deadline_s:
            return False
        wait()
    return True


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="rlserve cancel",
        description="End a run: it finishes its training step and saves. rlserve resume goes on with it.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run", metavar="RUN", help="its folder, its name, latest, or a sweep")
    parser.add_argument("--wait", type=float, default=0.0, metavar="SECONDS", help="wait so long for its end")
    parser.add_argument(
        "--here", action="store_true", help="stop its process on this machine, and leave the job to its scheduler"
    )
    parser.add_argument(
        "--output-dir", default=DEFAULT_OUTPUT_DIR, metavar="DIR", help=f"where runs lie ({DEFAULT_OUTPUT_DIR})"
    )
    return parser
