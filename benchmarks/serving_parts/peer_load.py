"""What the clients of the servers ask: ``rlserve bench`` before each server, and what it saw."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

from serving_parts.peer_servers import MODEL_NAME, PeerServer


@dataclass(frozen=True, kw_only=True)
class LoadCase:
    """A load: closed loop of ``concurrency`` clients, or Poisson arrivals at ``rate_per_s``."""

    name: str
    num_requests: int
    concurrency: int | None = None
    rate_per_s: float | None = None
    input_tokens: str = "128..512"
    output_tokens: str = "64..128"
    num_prefixes: int | None = None
    prefix_tokens: int = 384

    def options(self) -> list[str]:
        """Of ``rlserve bench``."""
        words = ["--input-tokens", self.input_tokens, "--output-tokens", self.output_tokens]
        words += ["--num-requests", str(self.num_requests)]
        words += (
            ["--rate", str(self.rate_per_s)] if self.concurrency is None else ["--concurrency", str(self.concurrency)]
        )
        if self.num_prefixes is not None:
            words += ["--workload", "prefix", "--num-prefixes", str(self.num_prefixes)]
            words += ["--prefix-tokens", str(self.prefix_tokens)]
        return words


CASES = {
    case.name: case
    for case in (
        LoadCase(name="concurrency 1", concurrency=1, num_requests=8),
        LoadCase(name="concurrency 8", concurrency=8, num_requests=32),
        LoadCase(name="concurrency 32", concurrency=32, num_requests=96),
        LoadCase(name="poisson", rate_per_s=2.0, num_requests=40),
        LoadCase(name="shared prefix", concurrency=8, num_requests=48, num_prefixes=4, input_tokens="32..128"),
    )
}
SMOKE = LoadCase(name="smoke", concurrency=2, num_requests=4, input_tokens="8", output_tokens="8")


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What the client saw of one server in one round. Times are seconds."""

    server: str
    output_tokens_per_s: float
    ttft_s: float
    """Median; 99th percentile below."""
    ttft_p99_s: float
    itl_s: float
    """Mean of the gaps between pieces; where a piece has several tokens they are the longer for it. NaN where each
    answer came in one piece."""
    itl_p99_s: float
    tokens_per_chunk: float
    num_failed: int
    server_cpu_s: float
    """Of all its processes."""
    client_cpu_share: float
    """Of one processor, that the client used."""


def ask(case: LoadCase, server: PeerServer, folder: Path, seed: int) -> Seen:
    """One round before one server."""
    before = server.cpu_s
    with tempfile.TemporaryDirectory() as kept:
        path = Path(kept) / "seen.json"
        command = [sys.executable, "-m", "rlserve", "bench", server.url, "--model", MODEL_NAME, "--json", str(path)]
        command += ["--tokenizer", str(folder), "--seed", str(seed), "--ignore-eos", *case.options()]
        done = subprocess.run(command, capture_output=True, text=True)
        assert path.is_file(), done.stderr[-2000:]
        (run,) = json.loads(path.read_text())["runs"]
    assert not run["num_failed"], f"{server.name}: {run['failures']}"
    return seen_of(run, server.name, server_cpu_s=server.cpu_s - before)


def seen_of(run: dict[str, Any], server: str, *, server_cpu_s: float) -> Seen:
    """Of a run as ``rlserve bench --json`` has it."""
    gaps = run["itl_s"] or {"mean": math.nan, "p99": math.nan}
    return Seen(
        server=server,
        output_tokens_per_s=run["output_tokens_per_s"],
        ttft_s=run["ttft_s"]["median"],
        ttft_p99_s=run["ttft_s"]["p99"],
        itl_s=gaps["mean"],
        itl_p99_s=gaps["p99"],
        tokens_per_chunk=run["tokens_per_chunk"],
        num_failed=run["num_failed"],
        server_cpu_s=server_cpu_s,
        client_cpu_share=run["client"]["processor_share"],
    )


@dataclass(frozen=True, kw_only=True)
class Ratios:
    """How many times better the one server was than the other: medians over rounds of the ratio in each round."""

    output_tokens_per_s: float
    ttft_s: float
    itl_s: float


def ratios(ours: Sequence[Seen], theirs: Sequence[Seen]) -> Ratios:
    """Above 1 ours is better; only what was seen in the same round is compared."""
    pairs = list(zip(ours, theirs, strict=True))
    return Ratios(
        output_tokens_per_s=median(our.output_tokens_per_s / their.output_tokens_per_s for our, their in pairs),
        ttft_s=median(their.ttft_s / our.ttft_s for our, their in pairs),
        itl_s=median(their.itl_s / our.itl_s for our, their in pairs),
    )


def with_rate(case: LoadCase, rate_per_s: float | None) -> LoadCase:
    """The case at another rate, if it is an open loop and one is given."""
    return case if case.rate_per_s is None or rate_per_s is None else replace(case, rate_per_s=rate_per_s)
