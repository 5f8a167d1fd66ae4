"""``rlserve explain``: why the slots of a run moved or stayed, and what it came to."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict

import yaml

from rlserve.cli.places import DEFAULT_OUTPUT_DIR, open_run
from rlserve.tracking import names
from rlserve.tracking.explanation import Explanation, describe, explain
from rlserve.tracking.jsonl import read_json_lines
from rlserve.tracking.run_folder import RunFolder

_EXAMPLES = """\
examples:
  rlserve explain                the newest run, also while it goes on
  rlserve explain my-run --all   with every reason why nothing moved
  rlserve explain my-run --json | jq .gain_against_start
"""


def run(arguments: Sequence[str]) -> int:
    """Print the decisions of a run and what came of them."""
    parsed = _parser().parse_args(arguments)
    explanation = read_explanation(open_run(parsed.run, parsed.output_dir))
    if parsed.json:
        sums = {"moving_s": explanation.moving_s, "gain_against_start": explanation.gain_against_start}
        moves = [{**asdict(move), "gain": move.gain} for move in explanation.moves]
        sys.stdout.write(json.dumps({**asdict(explanation), **sums, "moves": moves}, indent=2) + "\n")
    else:
        sys.stdout.write(describe(explanation, in_full=parsed.all))
    return 0


def read_explanation(folder: RunFolder) -> Explanation:
    """From the files of a run, whether it goes on, has ended or was killed.

    Raises:
        DataError: a line is damaged.
    """
    metrics = read_json_lines(folder.metrics_file)
    last = max(metrics, key=lambda record: int(record["step"]), default={})
    step_s = max((record.get(names.TIME) or 0.0 for record in metrics), default=0.0)
    config = yaml.safe_load(folder.config_file.read_text(encoding="utf-8")) if folder.config_file.exists() else {}
    return explain(
        folder.name,
        decisions=read_json_lines(folder.decisions_file),
        events=read_json_lines(folder.events_file),
        config=config,
        last_step=(int(last.get("step", 0)), step_s),
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
