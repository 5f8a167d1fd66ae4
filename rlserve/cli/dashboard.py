"""``rlserve dashboard``: runs, live in a browser."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rlserve.cli.places import DEFAULT_OUTPUT_DIR, open_run
from rlserve.tracking.dashboard.server import LOOPBACK, DashboardServer
from rlserve.tracking.run_state import find_runs

_EXAMPLES = """\
examples:
  rlserve dashboard                          all runs in runs/, the newest first; Ctrl-C ends it
  rlserve dashboard my-run --port 8080
  ssh -L 8080:127.0.0.1:8080 CLUSTER         its port here, for a run on another machine
"""


def run(arguments: Sequence[str]) -> int:
    """Serve until Ctrl-C."""
    parsed = _parser().parse_args(arguments)
    folder = None if parsed.run is None else open_run(parsed.run, parsed.output_dir)
    find = (lambda: find_runs(Path(parsed.output_dir))) if folder is None else (lambda: [folder])
    with DashboardServer(find, port=parsed.port, host=parsed.host) as server:
        sys.stdout.write(f"{server.url}  (Ctrl-C ends it)\n")
        sys.stdout.flush()
        server.serve_forever()
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="rlserve dashboard",
        description="Show runs live in a browser, from their folders alone. It can only be read from, and listens on "
        "the loopback interface.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run", nargs="?", metavar="RUN", help="its folder, its name, or latest; without it, all runs")
    parser.add_argument("--port", type=int, default=0, metavar="N", help="port to listen on (0: a free one)")
    parser.add_argument(
        "--host",
        default=LOOPBACK,
        metavar="ADDRESS",
        help=f"address to listen on ({LOOPBACK}); whoever reaches another one can read all runs",
    )
    parser.add_argument(
        "--output-dir", default=DEFAULT_OUTPUT_DIR, metavar="DIR", help=f"where runs lie ({DEFAULT_OUTPUT_DIR})"
    )
    return parser
