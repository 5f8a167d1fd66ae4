"""``rlserve submit``: a run as a job of a cluster's scheduler."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence

SCHEDULER_NAMES = ("slurm", "kubernetes", "ray", "skypilot")
_EXAMPLES = """\
examples:
  rlserve submit conf/rlhf.yaml --to slurm pool=h100_h200 launch.slurm.partition=gpu --dry-run
  rlserve submit conf/rlhf.yaml --to kubernetes pool=h100_h200 launch.image=me/rlserve launch.kubernetes.claim=runs
  rlserve status latest; rlserve logs latest --follow; rlserve cancel latest; rlserve resume latest

The run's own pool.slots say which machines the job asks for. Its files are in job/ of the run's folder.
"""


def run(arguments: Sequence[str]) -> int:
    """Render the job's files, and print or submit them."""
    parsed = _parser().parse_intermixed_args(arguments)
    from rlserve.config import load
    from rlserve.config.prices import check_prices
    from rlserve.launch.schedulers.growth import growth_in_words
    from rlserve.launch.schedulers.submission import ON_CLUSTER, render, submit

    config_path, *overrides = parsed.config
    loaded = load(config_path, [*overrides, *ON_CLUSTER])
    prices = check_prices(loaded.config)
    for remark in loaded.remarks:
        sys.stderr.write(f"{remark}\n")
    rendered = render(loaded, parsed.to)
    growth = growth_in_words(loaded.config, prices)
    command = shlex.join(rendered.scheduler.submit_command(rendered.plan, rendered.plan.folder / "job"))
    if parsed.dry_run:
        for name, text in rendered.files.items():
            sys.stdout.write(f"# ---- {rendered.plan.folder / 'job' / name}\n{text.rstrip()}\n\n")
        sys.stdout.write(f"# would run: {command}\n")
        if growth is not None:
            sys.stdout.write(f"# {growth}\n")
        return 0
    folder, job = submit(rendered)
    sys.stdout.write(f"{folder.name}: {job.scheduler} job {job.id}\nfolder: {folder.path}\n")
    if growth is not None:
        sys.stdout.write(f"{growth}\n")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="rlserve submit",
        usage="rlserve submit CONFIG --to SCHEDULER [key=value ...] [--dry-run]",
        description="Submit a run to a cluster's scheduler.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("config", nargs="+", metavar="CONFIG [key=value ...]", help="as for rlserve launch")
    parser.add_argument(
        "--to", required=True, choices=SCHEDULER_NAMES, metavar="SCHEDULER", help=", ".join(SCHEDULER_NAMES)
    )
    parser.add_argument("--dry-run", action="store_true", help="print the files and what would be run, submit nothing")
    return parser
