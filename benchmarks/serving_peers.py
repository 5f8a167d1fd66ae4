"""Our server and vLLM's before the same clients, in turn in one run.

python benchmarks/serving_peers.py --vllm-python PATH [--model 75m] [--case NAME …] [--rounds 3] [--json FILE]

Both serve the same folder with the same type, sizes and threads, and share the machine's processors with the client,
``rlserve bench``. One rests while the other is asked: what a resting server uses is measured and judged too.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # of both servers: a thread that spins takes from the client

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any

from checks import Check
from machine import circumstances
from models import DEFAULT_CACHE, SHAPES
from peers.factory import VLLM_PYTHON_VARIABLE
from serving_parts.peer_load import CASES, SMOKE, LoadCase, Seen, ask, ratios, with_rate
from serving_parts.peer_servers import OURS, VLLM, running_peer
from serving_parts.server import served_folder

BAR = 1.2
MAX_RESTING_SHARE = 0.05
"""Of a processor."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, and write what ``--json`` asks for; 1 where a bar is missed."""
    options = _parser().parse_args(arguments)
    if options.vllm_python is None:
        raise SystemExit(f"where is vLLM? give --vllm-python, or set {VLLM_PYTHON_VARIABLE}")
    cases = [with_rate({**CASES, SMOKE.name: SMOKE}[name], options.rate) for name in options.case]
    seen = _measure(cases, options)
    checks = list(checks_of(seen))
    for check in checks:
        print(f"{'ok ' if check.met else 'BAD'}  {check.value:.3f}  {check.name}")
    if options.json is not None:
        options.json.write_text(json.dumps({**_described(options), **_told(cases, seen, checks)}, indent=1) + "\n")
    return 0 if all(check.met for check in checks) else 1


def _measure(cases: Sequence[LoadCase], options: argparse.Namespace) -> dict[str, dict[str, list[Seen]]]:
    """By case and server, a :class:`Seen` for each round that counts; one goes before to warm up."""
    folder = served_folder(SHAPES[options.model], options.model_cache)
    seen: dict[str, dict[str, list[Seen]]] = {case.name: {OURS: [], VLLM: []} for case in cases}
    with ExitStack() as stack:
        servers = [
            stack.enter_context(running_peer(name, python, folder, options.threads))
            for name, python in ((OURS, sys.executable), (VLLM, options.vllm_python))
        ]
        for case in cases:
            for number in range(options.rounds + 1):
                # Who is first changes, so that a load that comes or goes is nobody's alone.
                for server in servers if number % 2 else servers[::-1]:
                    resting = [other for other in servers if other is not server]
                    # Another seed for each round: nothing but what a round shares itself is in the cache.
                    found = ask(case, server, resting, folder, seed=100 * number + cases.index(case))
                    print(_line(case, number, found), flush=True)
                    if number:
                        seen[case.name][server.name].append(found)
    return seen


def checks_of(seen: dict[str, dict[str, list[Seen]]]) -> Iterator[Check]:
    """Ratios of each case. An open loop has no throughput of its own: it is asked for so many."""
    for case, by_server in seen.items():
        found = ratios(by_server[OURS], by_server[VLLM])
        if case != "poisson":
            yield Check(name=f"{case}: output tokens/s over vLLM's", value=found.output_tokens_per_s, bar=BAR)
        yield Check(name=f"{case}: vLLM's median TTFT over ours", value=found.ttft_s, bar=BAR)
        yield Check(name=f"{case}: vLLM's mean ITL over ours", value=found.itl_s, bar=BAR)
    shares = [each.resting_share for by_server in seen.values() for rounds in by_server.values() for each in rounds]
    name = "share of a processor that the resting server takes"
    yield Check(name=name, value=median(shares), bar=MAX_RESTING_SHARE, at_least=False)


def _line(case: LoadCase, number: int, seen: Seen) -> str:
    return (
        f"{case.name}, {f'round {number}' if number else 'warm-up'}: {seen.server:8}"
        f" {seen.output_tokens_per_s:7.1f} tokens/s  TTFT {1000 * seen.ttft_s:7.1f} ms  ITL {1000 * seen.itl_s:6.1f} ms"
        f"  {seen.tokens_per_chunk:.2f} tokens a piece"
        f"  processor {seen.server_cpu_s:6.2f} s, the other's {seen.resting_share:.1%}"
    )


def _described(options: argparse.Namespace) -> dict[str, Any]:
    return {
        **circumstances(),
        "model": options.model,
        "num_threads": options.threads,
        "load_average": os.getloadavg()[0],
    }


def _told(cases: Sequence[LoadCase], seen: dict[str, dict[str, list[Seen]]], checks: Sequence[Check]) -> dict[str, Any]:
    return {
        "cases": [
            {**vars(case), "rounds": {name: [vars(each) for each in found] for name, found in seen[case.name].items()}}
            for case in cases
        ],
        "checks": [check.line() for check in checks],
    }


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="benchmarks/serving_peers.py", description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=sorted(SHAPES), default="75m", help="that both serve (75m)")
    parser.add_argument("--case", nargs="+", choices=[*CASES, SMOKE.name], default=list(CASES), metavar="NAME")
    parser.add_argument("--rounds", type=int, default=3, help="of each case, after one to warm up (3)")
    parser.add_argument("--rate", type=float, metavar="R", help="of the Poisson case, requests a second (2)")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of each server's engine (all)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything that was measured there")
    parser.add_argument(
        "--vllm-python",
        default=os.environ.get(VLLM_PYTHON_VARIABLE),
        metavar="PATH",
        help=f"Python that has vLLM (${VLLM_PYTHON_VARIABLE})",
    )
    parser.add_argument("--model-cache", type=Path, default=DEFAULT_CACHE, help="where the models are kept")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
