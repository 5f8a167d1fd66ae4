"""Our server and vLLM's before the same clients, in turn in one run.

python benchmarks/serving_peers.py --vllm-python PATH [--model 75m] [--case NAME …] [--rounds 3] [--json FILE]

One server at a time, so that none takes processors from the other::

    round:  start ──► each case: warm up, ask ──► stop ──► start the other ──► … ──► stop

Both serve the same folder with the same type, sizes and threads, and share the machine's processors with the client,
``rlserve bench``. Each waits between parallel regions as suits it best: ours as ``rlserve serve`` has it, vLLM's as
``--vllm-wait-policy`` says. Spinning (``active``) is quicker for it than either other way.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from checks import Check
from machine import circumstances
from models import DEFAULT_CACHE, SHAPES
from peers.factory import VLLM_PYTHON_VARIABLE
from serving_parts.peer_load import CASES, SMOKE, LoadCase, Seen, ask, ratios, with_rate
from serving_parts.peer_servers import OURS, VLLM, WAIT_POLICIES, WaitPolicy, running_peer
from serving_parts.server import served_folder

BAR = 1.2


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
    """By case and server, a :class:`Seen` for each round."""
    folder = served_folder(SHAPES[options.model], options.model_cache)
    seen: dict[str, dict[str, list[Seen]]] = {case.name: {OURS: [], VLLM: []} for case in cases}
    servers: list[tuple[str, str, WaitPolicy]] = [
        (OURS, sys.executable, "own"),
        (VLLM, options.vllm_python, options.vllm_wait_policy),
    ]
    for number in range(options.rounds):
        # Who is first changes, so that a load that comes or goes is nobody's alone.
        for name, python, policy in servers if number % 2 else servers[::-1]:
            with running_peer(name, python, folder, options.threads, policy) as server:
                for case in cases:
                    # Other seeds for each round, and to warm up: nothing but what a round shares itself is cached.
                    ask(case, server, folder, seed=_seed(number, case, is_warm_up=True))
                    found = ask(case, server, folder, seed=_seed(number, case))
                    print(_line(case, number, found), flush=True)
                    seen[case.name][name].append(found)
    return seen


def _seed(number: int, case: LoadCase, *, is_warm_up: bool = False) -> int:
    return 1000 * number + 2 * [*CASES, SMOKE.name].index(case.name) + is_warm_up


def checks_of(seen: dict[str, dict[str, list[Seen]]]) -> Iterator[Check]:
    """Ratios of each case. An open loop has no throughput of its own: it is asked for so many."""
    for case, by_server in seen.items():
        found = ratios(by_server[OURS], by_server[VLLM])
        if case != "poisson":
            yield Check(name=f"{case}: output tokens/s over vLLM's", value=found.output_tokens_per_s, bar=BAR)
        yield Check(name=f"{case}: vLLM's median TTFT over ours", value=found.ttft_s, bar=BAR)
        yield Check(name=f"{case}: vLLM's mean ITL over ours", value=found.itl_s, bar=BAR)


def _line(case: LoadCase, number: int, seen: Seen) -> str:
    return (
        f"{case.name}, round {number + 1}: {seen.server:8}"
        f" {seen.output_tokens_per_s:7.1f} tokens/s  TTFT {1000 * seen.ttft_s:7.1f} ms  ITL {1000 * seen.itl_s:6.1f} ms"
        f"  {seen.tokens_per_chunk:.2f} tokens a piece"
        f"  processor {seen.server_cpu_s:6.2f} s, the client's {seen.client_cpu_share:.0%} of one"
    )


def _described(options: argparse.Namespace) -> dict[str, Any]:
    return {
        **circumstances(),
        "model": options.model,
        "num_threads": options.threads,
        "wait_policy": {OURS: WAIT_POLICIES[OURS, "own"], VLLM: WAIT_POLICIES[VLLM, options.vllm_wait_policy]},
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
    parser.add_argument("--rounds", type=int, default=3, help="of each case (3)")
    parser.add_argument("--rate", type=float, metavar="R", help="of the Poisson case, requests a second (2)")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of each server's engine (all)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything that was measured there")
    parser.add_argument(
        "--vllm-python",
        default=os.environ.get(VLLM_PYTHON_VARIABLE),
        metavar="PATH",
        help=f"Python that has vLLM (${VLLM_PYTHON_VARIABLE})",
    )
    parser.add_argument(
        "--vllm-wait-policy",
        choices=("own", "active", "passive"),
        default="active",
        help="how vLLM's threads wait: as it has them wait itself (own), or by OMP_WAIT_POLICY (active)",
    )
    parser.add_argument("--model-cache", type=Path, default=DEFAULT_CACHE, help="where the models are kept")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
