"""Measure training against its peers, in turn in one run.

python benchmarks/trainer.py [--case NAME …] [--rounds N] [--threads N] [--trl-python PATH] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from models import DEFAULT_CACHE
from rich.console import Console
from trainer_parts.cases import CASES, SMOKE, SMOKE_NAME, chosen
from trainer_parts.comparison import checks, report, table
from trainer_parts.factory import OUR_NAME
from trainer_parts.rounds import CaseResult, run_case

TRL_VARIABLE = "RLSERVE_TRL_PYTHON"
TRL_PPO_VARIABLE = "RLSERVE_TRL_PPO_PYTHON"
DEEPSPEED_VARIABLE = "RLSERVE_DEEPSPEED_PYTHON"
TABLE_WIDTH = 170
"""Columns that the table needs; a narrower terminal wraps its lines."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print the table and the checks, and write the JSON after every case."""
    options = _parser().parse_args(arguments)
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # so that the workers are ended too
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    pythons: dict[str, str | None] = {
        OUR_NAME: sys.executable,
        "plain": sys.executable,
        "trl-grpo": options.trl_python,
        "trl-score": options.trl_python,
        "trl-ppo": options.trl_ppo_python or options.trl_python,
        "deepspeed": options.deepspeed_python,
    }
    results: list[CaseResult] = []
    for case in chosen(options.case):
        num_rounds = options.rounds or case.default_rounds
        results.append(
            run_case(case, pythons, num_rounds=num_rounds, num_threads=options.threads, model_cache=options.model_cache)
        )
        if options.json:
            options.json.parent.mkdir(parents=True, exist_ok=True)
            options.json.write_text(json.dumps(report(results, num_threads=options.threads), indent=1) + "\n")
    _print(results)


def _print(results: Sequence[CaseResult]) -> None:
    console = Console()
    console.width = max(console.width, TABLE_WIDTH)
    console.print(table(results))
    for check in checks(results):
        state = "met   " if check.met else "MISSED"
        console.print(f"{state} {check.name}: {check.value:.3g} (bar {check.bar:g})", markup=False)
    for result in results:
        for side in (result.ours, result.peer):
            if side.missing:
                console.print(f"{result.case.name}: {side.peer} {side.missing}", markup=False)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="benchmarks/trainer.py", description=(__doc__ or "").splitlines()[0])
    names = [*CASES, SMOKE_NAME, *(case.name for case in SMOKE)]
    parser.add_argument("--case", nargs="+", choices=names, default=list(CASES), metavar="NAME", help=", ".join(names))
    parser.add_argument("--rounds", type=int, help="rounds of each case (default: the case's own)")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="threads of each side (default: all cores)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything that was measured there")
    for option, variable, package in (
        ("--trl-python", TRL_VARIABLE, "TRL"),
        ("--trl-ppo-python", TRL_PPO_VARIABLE, "a TRL with PPO; without it that of --trl-python is taken"),
        ("--deepspeed-python", DEEPSPEED_VARIABLE, "DeepSpeed"),
    ):
        words = f"Python that has {package} (default: ${variable})"
        parser.add_argument(option, default=os.environ.get(variable), metavar="PATH", help=words)
    parser.add_argument("--model-cache", type=Path, default=DEFAULT_CACHE, help="where made-up models are kept")
    return parser


if __name__ == "__main__":
    main()
