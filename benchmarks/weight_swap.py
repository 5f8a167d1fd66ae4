"""Measure what a new version of the weights costs the engine, beside a copy of the same tensors.

python benchmarks/weight_swap.py [--shape NAME …] [--dtype bfloat16] [--rounds N] [--threads N] [--json FILE]
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
from statistics import median

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # before torch is imported

import torch
from machine import circumstances
from models import DEFAULT_CACHE, SHAPES, ModelShape, model_folder

from rlserve.engine import Engine, EngineConfig
from rlserve.engine.weights.fingerprint import fingerprint

KV_CACHE_BYTES = 2**26
MAX_MODEL_LEN = 256


@dataclass(frozen=True, kw_only=True)
class SwapResult:
    """Medians over the rounds."""

    shape: str
    dtype: str
    num_bytes: int
    copy_s: float
    """``copy_`` of every tensor into another that is there."""
    swap_s: float
    """``load_weights`` of the same tensors, until the next step can be computed with them."""
    fingerprint_s: float
    """Reading back what is loaded, and adding it up."""

    @property
    def num_copies(self) -> float:
        """What a swap costs."""
        return self.swap_s / self.copy_s


def measure(shape: ModelShape, dtype: str, *, num_rounds: int, cache: Path) -> SwapResult:
    """Copy, swap and read back in turn."""
    config = EngineConfig(dtype=dtype, kv_cache_bytes=KV_CACHE_BYTES, max_model_len=MAX_MODEL_LEN)
    engine = Engine(model_folder(shape, cache), config)
    weights = {name: tensor.clone() for name, tensor in engine.named_weights()}
    copies = {name: tensor.clone() for name, tensor in weights.items()}
    copy_s, swap_s, fingerprint_s = [], [], []
    for version in range(1, num_rounds + 1):
        start = time.perf_counter()
        for name, tensor in weights.items():
            copies[name].copy_(tensor)
        copied = time.perf_counter()
        engine.load_weights(version, weights)
        swapped = time.perf_counter()
        found = fingerprint(engine.named_weights())
        copy_s.append(copied - start)
        swap_s.append(swapped - copied)
        fingerprint_s.append(time.perf_counter() - swapped)
        assert found == fingerprint(weights.items())
    return SwapResult(
        shape=shape.name,
        dtype=dtype,
        num_bytes=sum(tensor.numel() * tensor.element_size() for tensor in weights.values()),
        copy_s=median(copy_s),
        swap_s=median(swap_s),
        fingerprint_s=median(fingerprint_s),
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print a line for each shape, and write the JSON."""
    parser = argparse.ArgumentParser(prog="benchmarks/weight_swap.py", description=__doc__.splitlines()[0])
    parser.add_argument("--shape", nargs="+", choices=list(SHAPES), default=["6m", "75m", "596m"], metavar="NAME")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="bfloat16")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--model-cache", type=Path, default=DEFAULT_CACHE, help="where the models are kept")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    results = []
    for name in options.shape:
        result = measure(SHAPES[name], options.dtype, num_rounds=options.rounds, cache=options.model_cache)
        results.append(result)
        sys.stdout.write(
            f"{name} {result.dtype}, {result.num_bytes / 1e6:,.0f} MB: copy {1e3 * result.copy_s:.1f} ms, swap "
            f"{1e3 * result.swap_s:.1f} ms ({result.num_copies:.2f} copies), fingerprint "
            f"{1e3 * result.fingerprint_s:.1f} ms\n"
        )
    if options.json:
        content = {**circumstances(), "num_threads": options.threads, "torch": torch.__version__}
        content["results"] = [asdict(result) | {"num_copies": result.num_copies} for result in results]
        options.json.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
