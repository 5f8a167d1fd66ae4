"""Measure what a draw costs the CPU by vocabulary and rule, each beside the plain draw.

python benchmarks/sampling.py [--vocab-size N …] [--rounds N] [--threads N] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # before torch is imported

import numpy as np
import torch
from machine import circumstances

from rlserve.engine.kernels.base import SamplingBatch
from rlserve.engine.kernels.cpu_kernels import CpuKernels

NUM_DRAWS = 16
SPREADS = (1.0, 3.0)
"""Standard deviations of the logits: a model that knows little, and one that knows more."""
RULES = {
    "plain": (0, 1.0),
    "top_k=50": (50, 1.0),
    "top_p=0.9": (0, 0.9),
    "top_p=0.99": (0, 0.99),
    "top_k=50 top_p=0.9": (50, 0.9),
    "top_k=5000": (5000, 1.0),
}
"""``top_k`` and ``top_p`` of each."""


@dataclass(frozen=True, kw_only=True)
class DrawResult:
    """The least time over the rounds, in which all rules take turns."""

    vocab_size: int
    spread: float
    rule: str
    draw_s: float
    plain_draws: float
    """In units of a draw from all tokens."""


def measure(vocab_size: int, spread: float, num_rounds: int) -> list[DrawResult]:
    """Draw from normally distributed logits by each rule."""
    kernels = CpuKernels()
    logits = torch.randn(NUM_DRAWS, vocab_size, generator=torch.Generator().manual_seed(0)) * spread
    draw_s = dict.fromkeys(RULES, float("inf"))
    for _ in range(num_rounds):
        for rule, (top_k, top_p) in RULES.items():
            batch = _batch(top_k, top_p)
            start = time.perf_counter()
            kernels.sample(logits, batch)
            draw_s[rule] = min(draw_s[rule], (time.perf_counter() - start) / NUM_DRAWS)
    return [
        DrawResult(vocab_size=vocab_size, spread=spread, rule=rule, draw_s=taken, plain_draws=taken / draw_s["plain"])
        for rule, taken in draw_s.items()
    ]


def _batch(top_k: int, top_p: float) -> SamplingBatch:
    return SamplingBatch(
        logits_row=np.arange(NUM_DRAWS, dtype=np.int32),
        temperature=np.ones(NUM_DRAWS, dtype=np.float32),
        top_k=np.full(NUM_DRAWS, top_k, dtype=np.int32),
        top_p=np.full(NUM_DRAWS, top_p, dtype=np.float32),
        min_p=np.zeros(NUM_DRAWS, dtype=np.float32),
        uniform=np.random.default_rng(0).random(NUM_DRAWS),
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print a line for each rule, and write the JSON."""
    parser = argparse.ArgumentParser(prog="benchmarks/sampling.py", description=__doc__.splitlines()[0])
    parser.add_argument("--vocab-size", nargs="+", type=int, default=[4096, 32000, 151936], metavar="N")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    results = []
    for vocab_size in options.vocab_size:
        for spread in SPREADS:
            measured = measure(vocab_size, spread, options.rounds)
            results += measured
            for result in measured:
                sys.stdout.write(
                    f"{vocab_size:>7,} spread {spread:g} {result.rule:<20} {1e3 * result.draw_s:7.3f} ms a draw, "
                    f"{result.plain_draws:.2f} plain draws\n"
                )
    if options.json:
        content = {**circumstances(), "num_threads": options.threads, "torch": torch.__version__}
        content["results"] = [asdict(result) for result in results]
        options.json.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
