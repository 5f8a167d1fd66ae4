"""Measure the engine beside processes that load all cores: the throughput it keeps, and the processor time it keeps.

python benchmarks/contention.py [--case NAME …] [--rounds N] [--threads N] [--json FILE]

It loses no more than the cores that it loses if the first share is at least the second.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # before torch is imported

import torch
from engine_cases import CASES, SMOKE, Case, make_requests, num_output_tokens, peer_options
from machine import circumstances
from models import DEFAULT_CACHE, SHAPES, model_folder
from peers.base import Peer
from peers.rlserve_peer import RlservePeer

LOADING = "import os; os.write(1, b'1')\nwhile True: pass"


@dataclass(frozen=True, kw_only=True)
class Run:
    """The same requests, alone and beside others."""

    alone_tokens_per_s: float
    alone_cores: float
    """Processor time by wall time."""
    beside_tokens_per_s: float
    beside_cores: float

    @property
    def throughput_kept(self) -> float:
        """Share of the tokens per second."""
        return self.beside_tokens_per_s / self.alone_tokens_per_s

    @property
    def cores_kept(self) -> float:
        """Share of the processor time."""
        return self.beside_cores / self.alone_cores


@contextmanager
def loaded_cores(num_processes: int) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Processes that compute without end, all of them at it."""
    command = [sys.executable, "-c", LOADING]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE) for _ in range(num_processes)]
    try:
        for process in processes:
            assert process.stdout is not None
            process.stdout.read(1)
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.wait()


def measure(case: Case, *, num_rounds: int, num_threads: int, cache: Path) -> list[Run]:
    """Both ways in turn, with as many processes beside as there are threads."""
    folder = model_folder(SHAPES[case.shape], cache)
    peer = RlservePeer(peer_options(case, model_folder=str(folder), num_threads=num_threads))
    peer.warm_up(make_requests(case, 0))
    runs = []
    for round_index in range(1, num_rounds + 1):
        alone = _speed(peer, case, round_index)
        with loaded_cores(num_threads):
            beside = _speed(peer, case, round_index)
        runs.append(
            Run(
                alone_tokens_per_s=alone[0],
                alone_cores=alone[1],
                beside_tokens_per_s=beside[0],
                beside_cores=beside[1],
            )
        )
    return runs


def _speed(peer: Peer, case: Case, round_index: int) -> tuple[float, float]:
    """Tokens per second, and cores."""
    requests = make_requests(case, round_index)
    start, start_cpu = time.perf_counter(), time.process_time()
    peer.run(requests)
    wall_s = time.perf_counter() - start
    return num_output_tokens(requests) / wall_s, (time.process_time() - start_cpu) / wall_s


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print a line for each case, and write the JSON."""
    parser = argparse.ArgumentParser(prog="benchmarks/contention.py", description=__doc__.splitlines()[0])
    names = [*CASES, SMOKE.name]
    parser.add_argument("--case", nargs="+", choices=names, default=["6m-f32", "6m-bf16", "75m-bf16"], metavar="NAME")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--model-cache", type=Path, default=DEFAULT_CACHE, help="where the models are kept")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    content = {**circumstances(), "num_threads": options.threads, "torch": torch.__version__, "cases": {}}
    for name in options.case:
        case = SMOKE if name == SMOKE.name else CASES[name]
        runs = measure(case, num_rounds=options.rounds, num_threads=options.threads, cache=options.model_cache)
        throughput, cores = median(run.throughput_kept for run in runs), median(run.cores_kept for run in runs)
        sys.stdout.write(f"{name}: keeps {throughput:.2f} of its throughput with {cores:.2f} of its processor time\n")
        content["cases"][name] = {
            "throughput_kept": throughput,
            "cores_kept": cores,
            "rounds": [asdict(run) for run in runs],
        }
    if options.json:
        options.json.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
