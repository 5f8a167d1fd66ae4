"""Measure the rollout engine against its peers, in turn in one run.

python benchmarks/engine.py [--case NAME …] [--peers hf,hf_batch,vllm] [--rounds N] [--threads N] [--json FILE]
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

from engine_cases import CASES, SMOKE
from engine_report import CaseResult, report, table
from engine_rounds import run_case
from models import DEFAULT_CACHE
from peers.factory import OURS, PEERS, VLLM_PYTHON_VARIABLE
from rich.console import Console

TABLE_WIDTH = 130
"""Columns that the table needs; a narrower terminal wraps its lines."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print the table, and write the JSON after every case."""
    options = _parser().parse_args(arguments)
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # so that the workers are ended too
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    pythons = {peer: options.vllm_python if peer == "vllm" else sys.executable for peer in (OURS, *options.peers)}
    results: list[CaseResult] = []
    for name in options.case:
        case = SMOKE if name == SMOKE.name else CASES[name]
        load_average = os.getloadavg()[0]
        peers = run_case(
            case,
            pythons,
            num_rounds=options.rounds or case.default_rounds,
            num_threads=options.threads,
            model_cache=options.model_cache,
        )
        results.append(CaseResult(case=case, peers=peers, load_average=load_average))
        if options.json:
            options.json.parent.mkdir(parents=True, exist_ok=True)
            options.json.write_text(json.dumps(report(results, num_threads=options.threads), indent=1) + "\n")
    console = Console()
    console.width = max(console.width, TABLE_WIDTH)
    console.print(table(results))
    for result in results:
        for peer in result.peers:
            if peer.missing:
                console.print(f"{result.case.name}: {peer.peer} {peer.missing}", markup=False)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="benchmarks/engine.py", description=__doc__.splitlines()[0])
    names = [*CASES, SMOKE.name]
    parser.add_argument("--case", nargs="+", choices=names, default=list(CASES), metavar="NAME", help=", ".join(names))
    parser.add_argument(
        "--peers", type=_peers, default=PEERS, metavar="A,B", help=f"of {','.join(PEERS)} (default: all)"
    )
    parser.add_argument("--rounds", type=int, help="rounds of each case (default: the case's own)")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="threads of each peer (default: all cores)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything that was measured there")
    parser.add_argument(
        "--vllm-python",
        default=os.environ.get(VLLM_PYTHON_VARIABLE),
        metavar="PATH",
        help=f"Python that has vLLM (default: ${VLLM_PYTHON_VARIABLE})",
    )
    parser.add_argument("--model-cache", type=Path, default=DEFAULT_CACHE, help="where the models are kept")
    return parser


def _peers(text: str) -> tuple[str, ...]:
    names = tuple(name for name in text.split(",") if name)
    unknown = [name for name in names if name not in PEERS]
    if unknown:
        raise argparse.ArgumentTypeError(f"no peer {unknown[0]!r}; there are {', '.join(PEERS)}")
    return names


if __name__ == "__main__":
    main()
