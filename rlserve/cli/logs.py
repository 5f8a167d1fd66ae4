"""``rlserve logs``: what a run, or the job that it belongs to, has written."""

from __future__ import annotations

import argparse
import subprocess
from collections.abc import Sequence

from rlserve.cli.places import DEFAULT_OUTPUT_DIR, find_sweep, open_run
from rlserve.errors import UserError
from rlserve.tracking.run_folder import RunFolder

_EXAMPLES = """\
examples:
  rlserve logs                   the log of the newest run
  rlserve logs my-run --follow
  rlserve logs my-run --job      all that its job has printed, Ray's start and the traceback of a crash too
"""


def run(arguments: Sequence[str]) -> int:
    """Print the log of a run."""
    parsed = _parser().parse_args(arguments)
    sweep = find_sweep(parsed.run, parsed.output_dir)
    if sweep is not None:
        if parsed.job:
            raise UserError(f"{sweep.name} is a sweep: say of which of its runs, for instance {sweep.name}-1")
        return _print(list(sweep.begun()), parsed.follow)
    folder = open_run(parsed.run, parsed.output_dir)
    if parsed.job or not folder.log_file.exists():
        from rlserve.launch.schedulers.submission import job_of

        found = job_of(folder)
        if found is not None:
            scheduler, job = found
            return scheduler.print_logs(job, follow=parsed.follow)
        missing = "no job: it was not submitted" if parsed.job else f"no log yet: {folder.log_file}"
        raise UserError(f"{folder.name} has {missing}")
    return _print([folder], parsed.follow)


def _print(folders: Sequence[RunFolder], follow: bool) -> int:
    """Of several, what each has written stands below its name."""
    files = [str(folder.log_file) for folder in folders if follow or folder.log_file.exists()]
    if not files:
        raise UserError("none of its runs has a log yet")
    return subprocess.run(["tail", "-n", "+1", *(["-F"] if follow else []), *files]).returncode


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="rlserve logs",
        description="Print the log of a run, wherever it runs; where its folder has none yet, that of its job.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "run", nargs="?", default="latest", metavar="RUN", help="its folder, its name, latest, or a sweep"
    )
    parser.add_argument("--follow", "-f", action="store_true", help="go on with what is written from now on")
    parser.add_argument("--job", action="store_true", help="what its job has printed")
    parser.add_argument(
        "--output-dir", default=DEFAULT_OUTPUT_DIR, metavar="DIR", help=f"where runs lie ({DEFAULT_OUTPUT_DIR})"
    )
    return parser
