"""``rlserve trace``: a run's timeline for Perfetto."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rlserve.cli.places import DEFAULT_OUTPUT_DIR, open_run
from rlserve.errors import UserError
from rlserve.tracking.timeline.trace import write_trace

_EXAMPLES = """\
examples:
  rlserve trace                        trace.json of the newest run, in its folder
  rlserve trace my-run --out my.json   then open it at https://ui.perfetto.dev, or in chrome://tracing
"""


def run(arguments: Sequence[str]) -> int:
    """Write ``trace.json``."""
    parsed = _parser().parse_args(arguments)
    folder = open_run(parsed.run, parsed.output_dir)
    path = folder.trace_file if parsed.out is None else Path(parsed.out)
    try:
        write_trace(folder, path)
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror}): choose another --out") from error
    sys.stdout.write(f"{path}\n")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="rlserve trace",
        description="Write what every slot did when (training, generating, syncing, switching, idle), the training "
        "steps, the manager's decisions, queue, buffer and rates as a trace for Perfetto, from the files of a run.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run", nargs="?", default="latest", metavar="RUN", help="its folder, its name, or latest")
    parser.add_argument("--out", metavar="FILE", help="where the trace goes (trace.json in the run's folder)")
    parser.add_argument(
        "--output-dir", default=DEFAULT_OUTPUT_DIR, metavar="DIR", help=f"where runs lie ({DEFAULT_OUTPUT_DIR})"
    )
    return parser
