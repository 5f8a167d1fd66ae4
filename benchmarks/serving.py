"""What it costs to have an engine behind HTTP, and what becomes of a server under many streams.

python benchmarks/serving.py [--model 75m] [--rounds 5] [--json FILE]

``overhead`` streams 64 answers from a server with one replica, and has the same engine generate the same answers in
this process, in turn, round after round; the client only looks for the end of each, and then once more reads each piece
as it comes. ``streams`` keeps 500 streams open
at once, wave after wave, and compares the memory of the server's front after the first wave and after the last.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # read when torch is loaded

import argparse
import json
from pathlib import Path
from statistics import median

from checks import Check
from machine import circumstances
from models import DEFAULT_CACHE, SHAPES
from serving_parts.overhead import measure_overhead
from serving_parts.streams import measure_streams

MAX_OVERHEAD = 0.10
MAX_GROWTH = 0.05


def main() -> int:
    """Measure, print, and write what ``--json`` asks for; 1 where a bar is missed."""
    options = _parser().parse_args()
    overrides = () if options.pieces is None else (f"max_pieces_per_s={options.pieces}",)
    rounds = measure_overhead(SHAPES[options.model], options.model_cache, options.rounds, *overrides)
    for each in rounds:
        print(
            f"engine {each.engine_s:6.2f} s  server {each.server_s:6.2f} s, {each.overhead:+.1%}; processor time "
            f"{each.engine_cpu_s:6.2f} s and {each.server_cpu_s:6.2f} s, {each.cpu_overhead:+.1%}; with a client "
            f"that reads each piece {each.read_s:6.2f} s, {each.read_s / each.engine_s - 1:+.1%}",
            flush=True,
        )
    streams = measure_streams(SHAPES["tiny"], options.model_cache)
    print(
        f"{streams.num_streams} streams, {streams.num_errors} errors; front "
        + ", ".join(f"{size / 2**20:.0f} MiB" for size in streams.front_bytes)
    )
    checks = [
        Check(
            name=f"HTTP overhead, 64 streams, {options.model}: time over the engine's alone, less 1",
            value=median(each.overhead for each in rounds),
            bar=MAX_OVERHEAD,
            at_least=False,
        ),
        Check(
            name=f"the same of processor time of front and replica, {options.model}",
            value=median(each.cpu_overhead for each in rounds),
            bar=MAX_OVERHEAD,
            at_least=False,
        ),
        Check(name="500 streams at once: errors", value=streams.num_errors, bar=0, at_least=False),
        Check(
            name="500 streams at once: growth of the front's memory after the first wave",
            value=streams.growth,
            bar=MAX_GROWTH,
            at_least=False,
        ),
    ]
    for check in checks:
        print(f"{'ok ' if check.met else 'BAD'}  {check.value:.3f}  {check.name}")
    if options.json is not None:
        content = {
            **circumstances(),
            "model": options.model,
            "max_pieces_per_s": options.pieces,
            "load_average": os.getloadavg()[0],
            "rounds": [vars(each) for each in rounds],
            "streams": vars(streams),
            "checks": [check.line() for check in checks],
        }
        options.json.write_text(json.dumps(content, indent=2) + "\n")
    return 0 if all(check.met for check in checks) else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="benchmarks/serving.py", description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=sorted(SHAPES), default="75m", help="whose overhead is measured (75m)")
    parser.add_argument("--rounds", type=int, default=5, help="of each, in turn (5)")
    parser.add_argument("--pieces", type=int, metavar="N", help="that streams are told in a second (the server's own)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything that was measured there")
    parser.add_argument("--model-cache", type=Path, default=DEFAULT_CACHE, help="where the models are kept")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
