"""``rlserve report``: makes the picture of a run anew."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from rlserve.cli.places import DEFAULT_OUTPUT_DIR, open_run

_EXAMPLES = """\
examples:
  rlserve report                 of the newest run, also while it goes on
  rlserve report my-run
"""


def run(arguments: Sequence[str]) -> int:
    """Make ``report.png`` and ``report.html`` from the files of a run."""
    parsed = _parser().parse_args(arguments)
    folder = open_run(parsed.run, parsed.output_dir)
    from rlserve.tracking.report import build_report

    build_report(folder)
    sys.stdout.write(f"{folder.report_png}\n{folder.report_html}\n")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="rlserve report",
        description="Make report.png and report.html of a run anew, from the files in its folder.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run", nargs="?", default="latest", metavar="RUN", help="its folder, its name, or latest")
    parser.add_argument(
        "--output-dir", default=DEFAULT_OUTPUT_DIR, metavar="DIR", help=f"where runs lie ({DEFAULT_OUTPUT_DIR})"
    )
    return parser
