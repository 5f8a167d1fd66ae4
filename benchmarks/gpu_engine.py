"""The nano-vllm benchmark on one GPU: 256 requests of random tokens, 100 to 1024 in and 100 to 1024 out, on the
shape of Qwen3-0.6B with random weights, bfloat16.

python benchmarks/gpu_engine.py [--attention triton|flash|torch] [--block-size N] [--no-overlap] [--rounds N]
    [--json FILE]

Needs torch, triton, transformers, safetensors and NumPy, and no installation of this package.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from random import Random
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
if find_spec("rlserve") is None:
    sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from machine import commit  # noqa: E402
from models import DEFAULT_CACHE, SHAPES, model_folder  # noqa: E402

from rlserve.engine import Engine, EngineConfig, Request, SamplingParams  # noqa: E402

PACKAGES = ("torch", "triton", "flash-attn", "transformers", "numpy")
SEED, NUM_REQUESTS, SHORTEST, LONGEST, HIGHEST_TOKEN = 0, 256, 100, 1024, 10_000
MAX_MODEL_LEN = 4096


@dataclass(frozen=True, kw_only=True)
class Round:
    """One pass over all requests."""

    wall_s: float
    num_output_tokens: int
    num_steps: int
    num_preemptions: int

    @property
    def tokens_per_s(self) -> float:
        """Output tokens, as nano-vllm counts."""
        return self.num_output_tokens / self.wall_s


def workload(num_requests: int, shortest: int, longest: int, highest_token: int) -> list[Request]:
    """The requests of nano-vllm's ``bench.py``: the same numbers in the same order from the same seed."""
    random = Random(SEED)
    prompts = [
        tuple(random.randint(0, highest_token) for _ in range(random.randint(shortest, longest)))
        for _ in range(num_requests)
    ]
    return [
        Request(
            id=str(index),
            prompt_token_ids=prompt,
            sampling=SamplingParams(
                temperature=0.6, ignore_eos=True, max_tokens=random.randint(shortest, longest), seed=index
            ),
        )
        for index, prompt in enumerate(prompts)
    ]


def run_round(engine: Engine, requests: Sequence[Request]) -> Round:
    """Serve all requests, given at once, to the end."""
    before = engine.stats()
    start = time.perf_counter()
    for request in requests:
        engine.add(request)
    while engine.has_work:
        for output in engine.step():
            assert output.finished, output.error
    wall_s = time.perf_counter() - start
    engine.check_integrity()
    after = engine.stats()
    return Round(
        wall_s=wall_s,
        num_output_tokens=after.num_generated_tokens - before.num_generated_tokens,
        num_steps=after.num_steps - before.num_steps,
        num_preemptions=after.num_preemptions - before.num_preemptions,
    )


def machine() -> dict[str, Any]:
    """What the figures hang on."""
    on_gpu = torch.cuda.is_available()
    return {
        "gpu": torch.cuda.get_device_name() if on_gpu else None,
        "cuda": torch.version.cuda,
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": {package: _version(package) for package in PACKAGES},
        "commit": commit(),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, and write the JSON."""
    options = _parser().parse_args(arguments)
    config = EngineConfig(
        device="cpu" if options.smoke else "cuda",
        attention_backend="auto" if options.smoke else options.attention,
        block_size=options.block_size,
        kv_cache_bytes=options.kv_cache_gib * 2**30,
        max_num_sequences=options.max_num_sequences,
        max_num_batched_tokens=options.max_num_batched_tokens,
        max_model_len=MAX_MODEL_LEN,
        enable_prefix_caching=False,  # as in nano-vllm's run, no prompts share a beginning
        cuda_graphs=not options.no_cuda_graphs,
        overlap_scheduling=not options.no_overlap,
    )
    sizes = (4, 2, 6, 100) if options.smoke else (NUM_REQUESTS, SHORTEST, LONGEST, HIGHEST_TOKEN)
    engine = Engine(model_folder(SHAPES["tiny" if options.smoke else "596m"], options.cache), config)
    start = time.perf_counter()
    run_round(engine, workload(*sizes)[: options.max_num_sequences])  # compiles programs, captures graphs
    warm_up_s = time.perf_counter() - start
    rounds = []
    for number in range(1, options.rounds + 1):
        rounds.append(run_round(engine, workload(*sizes)))
        print(
            f"round {number}: {rounds[-1].num_output_tokens} tokens in {rounds[-1].wall_s:.2f} s, "
            f"{rounds[-1].tokens_per_s:,.0f} tok/s, {rounds[-1].num_steps} steps",
            flush=True,
        )
    print(f"median {median(round.tokens_per_s for round in rounds):,.0f} tok/s")
    if options.json:
        report = {
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "machine": machine(),
            "config": asdict(config),
            "warm_up_s": warm_up_s,
            "peak_gpu_bytes": torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None,
            "rounds": [asdict(round) | {"tokens_per_s": round.tokens_per_s} for round in rounds],
            "median_tokens_per_s": median(round.tokens_per_s for round in rounds),
        }
        options.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="The nano-vllm benchmark on one GPU.")
    parser.add_argument("--attention", choices=("triton", "flash", "torch"), default="triton")
    parser.add_argument("--block-size", type=int, default=32, help="tokens per page; flash needs 256")
    parser.add_argument("--kv-cache-gib", type=int, default=40)
    parser.add_argument("--max-num-sequences", type=int, default=256)
    parser.add_argument("--max-num-batched-tokens", type=int, default=16384)
    parser.add_argument("--no-cuda-graphs", action="store_true")
    parser.add_argument("--no-overlap", action="store_true", help="read the tokens of a step before the next one")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cache", type=Path, default=DEFAULT_CACHE, help="where the model is kept")
    parser.add_argument("--json", type=Path, help="file for the figures")
    parser.add_argument("--smoke", action="store_true", help="four short requests on a tiny model, on the CPU")
    return parser


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


if __name__ == "__main__":
    main()
