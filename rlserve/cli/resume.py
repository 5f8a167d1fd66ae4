"""``rlserve resume``: take a run up again where it ran, on this machine or by its scheduler."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from rlserve.cli.places import DEFAULT_OUTPUT_DIR, find_sweep, open_run

_EXAMPLES = """\
examples:
  rlserve resume latest
  rlserve resume my-run num_steps=200 launch.slurm.partition=long
"""


def run(arguments: Sequence[str]) -> int:
    """Submit the run's job anew, or launch it here."""
    parsed = _parser().parse_intermixed_args(arguments)
    sweep = find_sweep(parsed.run, parsed.output_dir)
    if sweep is not None:
        from rlserve.cli.sweep_runs import resume_all

        return resume_all(sweep, parsed.overrides)
    folder = open_run(parsed.run, parsed.output_dir)
    from rlserve.launch.schedulers.submission import job_of, resubmit

    found = job_of(folder)
    if found is None:
        from rlserve.cli.launch import run as launch

        return launch(["--resume", str(folder.path), *parsed.overrides])
    job = resubmit(folder, found[1], parsed.overrides)
    sys.stdout.write(f"{folder.name}: {job.scheduler} job {job.id}\n")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="rlserve resume",
        description="Go on with a run where it stopped: by the scheduler that it was submitted to, or else on this "
        "machine, as rlserve launch --resume does.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run", metavar="RUN", help="its folder, its name, latest, or a sweep")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="what may change when a run goes on")
    parser.add_argument(
        "--output-dir", default=DEFAULT_OUTPUT_DIR, metavar="DIR", help=f"where runs lie ({DEFAULT_OUTPUT_DIR})"
    )
    return parser
