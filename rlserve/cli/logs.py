"""``rlserve logs``: what a run, or the job that it belongs to, has written."""

from __future__ import annotations

import argparse
import subprocess
from collections.abc import Sequence

from rlserve.cli.places import DEFAULT_OUTPUT_DIR, open_run
from rlserve.errors import UserError

_EXAMPLES = """\
examples:
  rlserve logs                   the log of the newest run
  rlserve logs my-run --follow
  rlserve logs my-run --job      all that its job has printed, Ray's start and the traceback of a crash too
"""


def run(arguments: Sequence[str]) -> int:
    """Print the log of a run."""
    parsed = _parser().parse_args(arguments)
    folder = open_run(parsed.run, parsed.output_dir)
    if parsed.job or not folder.log_file.exists():
        from rlserve.launch.schedulers.submission import job_of

        found = job_of(folder)
        if found is not None:
            scheduler, job = found
            return scheduler.print_logs(job, follow=parsed.follow)
        missing = "no job: it was not submitted" if parsed.job else f"no log yet: {folder.log_file}"
        raise UserError(f"{folder.name} has {missing}")
    return subprocess.run(["tail", "-n", "+1", *(["-F"] if parsed.follow else []), str(folder.log_file)]).returncode


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="rlserve logs",
        description="Print the log of a run, wherever it runs; where its folder has none yet, that of its job.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run", nargs="?", default="latest", metavar="RUN", help="its folder, its name, or latest")
    parser.add_argument("--follow", "-f", action="store_true", help="go on with what is written from now on")
    parser.add_argument("--job", action="store_true", help="what its job has printed")
    parser.add_argument(
        "--output-dir", default=DEFAULT_OUTPUT_DIR, metavar="DIR", help=f"where runs lie ({DEFAULT_OUTPUT_DIR})"
    )
    return parser
