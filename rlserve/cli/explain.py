"""``rlserve explain``: why the slots of a run moved or stayed, and what it came to."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict

from rlserve.cli.places import DEFAULT_OUTPUT_DIR, open_run
from rlserve.tracking.explanation import Explanation, describe, explain
from rlserve.tracking.jsonl import read_json_lines
from rlserve.tracking.run_folder import RunFolder
from rlserve.tracking.summary import read_summary

_EXAMPLES = """\
examples:
  rlserve explain                the newest run, also while it goes on
  rlserve explain my-run --all   with every reason why nothing moved
  rlserve explain my-run --json | jq .judgement.against_start
"""


def run(arguments: Sequence[str]) -> int:
    """Print the decisions of a run and what came of them."""
    parsed = _parser().parse_args(arguments)
    explanation = read_explanation(open_run(parsed.run, parsed.output_dir))
    if parsed.json:
        sums = {"moving_s": explanation.moving_s, "moves": [asdict(move) for move in explanation.moves]}
        sys.stdout.write(json.dumps({**asdict(explanation), **sums}, indent=2) + "\n")
    else:
        sys.stdout.write(describe(explanation, in_full=parsed.all))
    return 0


def read_explanation(folder: RunFolder) -> Explanation:
    """From the files of a run, whether it goes on, has ended or was killed.

    Raises:
        DataError: a line is damaged.
    """
    summary = read_summary(folder)
    return explain(
        folder.name,
        decisions=read_json_lines(folder.decisions_file),
        events=read_json_lines(folder.events_file),
        metrics=read_json_lines(folder.metrics_file),
        config=folder.read_config(),
        host_was_bottleneck=bool(summary and summary.host_was_bottleneck),
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="rlserve explain",
        description="Say why each move of a run's slots was made, why nothing moved in between, and what each move "
        "gained or cost afterwards.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run", nargs="?", default="latest", metavar="RUN", help="its folder, its name, or latest")
    parser.add_argument(
        "--output-dir", default=DEFAULT_OUTPUT_DIR, metavar="DIR", help=f"where runs lie ({DEFAULT_OUTPUT_DIR})"
    )
    parser.add_argument("--all", action="store_true", help="every hold with its reason, not the longest between moves")
    parser.add_argument("--json", action="store_true", help="print a JSON object of all of it")
    return parser
