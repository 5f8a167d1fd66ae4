"""Measure what becomes of samples under way when new weights come: their KV kept, or computed anew.

python benchmarks/new_weights.py [--shape NAME …] [--dtype bfloat16] [--updates N] [--change SHARE] [--json FILE]

Both ways draw the same groups of samples through the same versions of the weights. Compared are the time of the whole,
the tokens computed, and the log-probabilities of the tokens that the last version drew with those that it finds when it
reads the whole sample anew, as a trainer does.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, get_args

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # before torch is imported

import numpy as np
import torch
from machine import circumstances
from models import DEFAULT_CACHE, SHAPES, ModelShape, model_folder

from rlserve.engine import Engine, EngineConfig, Request, SampleOutput, SamplingParams

Way = Literal["keep_kv", "recompute"]
KV_CACHE_BYTES = 2**28


@dataclass(frozen=True, kw_only=True)
class Work:
    """What is drawn."""

    num_groups: int
    num_samples: int
    """Of a group."""
    prompt_length: int
    answer_length: int
    num_updates: int
    """Versions of the weights that come while it is drawn, at equal distances."""
    change: float
    """Of each weight from a version to the next, relative to it."""


@dataclass(frozen=True, kw_only=True)
class WayResult:
    """One way of going on."""

    shape: str
    way: Way
    total_s: float
    processor_s: float
    """Of all threads: a busy machine hardly changes it."""
    num_generated_tokens: int
    num_computed_tokens: int
    num_last_version_tokens: int
    mean_difference: float
    """Of log-probabilities, of the tokens that the last version drew, in absolute value."""
    max_difference: float


def measure(shape: ModelShape, dtype: Literal["float32", "bfloat16"], work: Work, way: Way, cache: Path) -> WayResult:
    """Draw everything once."""
    config = EngineConfig(
        dtype=dtype,
        kv_cache_bytes=KV_CACHE_BYTES,
        max_model_len=work.prompt_length + work.answer_length + 1,
        on_new_weights=way,
    )
    engine = Engine(model_folder(shape, cache), config)
    weights = {name: tensor.clone() for name, tensor in engine.named_weights()}
    chance = random.Random(0)
    requests = [
        Request(
            id=str(number),
            prompt_token_ids=tuple(chance.choices(range(shape.vocab_size), k=work.prompt_length)),
            sampling=SamplingParams(n=work.num_samples, max_tokens=work.answer_length, ignore_eos=True, seed=number),
        )
        for number in range(work.num_groups)
    ]
    for request in requests:
        engine.add(request)
    outputs, num_steps, version = [], 0, 0
    interval = work.answer_length // (work.num_updates + 1)
    start, processor_start = time.perf_counter(), time.process_time()
    while engine.has_work:
        outputs += engine.step()
        num_steps += 1
        if num_steps % interval == 0 and version < work.num_updates:
            version += 1
            weights = _changed(weights, work.change, seed=version)
            engine.load_weights(version, weights)
    total_s, processor_s = time.perf_counter() - start, time.process_time() - processor_start
    stats = engine.stats()
    samples = {output.request_id: output.samples for output in outputs}
    differences = np.concatenate([_differences(engine, request, samples[request.id]) for request in requests])
    return WayResult(
        shape=shape.name,
        way=way,
        total_s=total_s,
        processor_s=processor_s,
        num_generated_tokens=stats.num_generated_tokens,
        num_computed_tokens=stats.num_computed_tokens,
        num_last_version_tokens=len(differences),
        mean_difference=float(differences.mean()),
        max_difference=float(differences.max()),
    )


def _changed(weights: Mapping[str, torch.Tensor], change: float, *, seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: tensor * (1 + change * torch.randn(tensor.shape, generator=generator)).to(tensor.dtype)
        for name, tensor in weights.items()
    }


def _differences(engine: Engine, request: Request, samples: Sequence[SampleOutput]) -> np.ndarray:
    """Of the last version's tokens, between what was said of them and what the engine says that reads all anew."""
    found = []
    for sample in samples:
        sampling = SamplingParams(max_tokens=1, prompt_log_probs=0, seed=0)
        tokens = request.prompt_token_ids + tuple(sample.token_ids)
        engine.add(Request(id=f"{request.id} read", prompt_token_ids=tokens, sampling=sampling))
        outputs = []
        while not outputs:
            outputs = engine.step()
        read = np.array(outputs[0].prompt_log_probs[len(request.prompt_token_ids) :], dtype=np.float64)
        is_last = np.array(sample.weight_versions) == engine.weight_version
        found.append(np.abs(read - np.array(sample.log_probs))[is_last])
    return np.concatenate(found)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print a line for each way, and write the JSON."""
    parser = argparse.ArgumentParser(prog="benchmarks/new_weights.py", description=__doc__.splitlines()[0])
    parser.add_argument("--shape", nargs="+", choices=list(SHAPES), default=["6m", "75m"], metavar="NAME")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="bfloat16")
    parser.add_argument("--groups", type=int, default=8)
    parser.add_argument("--samples", type=int, default=4)
    parser.add_argument("--prompt", type=int, default=64, help="tokens")
    parser.add_argument("--answer", type=int, default=256, help="tokens")
    parser.add_argument("--updates", type=int, default=4)
    parser.add_argument("--change", type=float, default=0.01, help="of each weight from a version to the next")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--model-cache", type=Path, default=DEFAULT_CACHE, help="where the models are kept")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    work = Work(
        num_groups=options.groups,
        num_samples=options.samples,
        prompt_length=options.prompt,
        answer_length=options.answer,
        num_updates=options.updates,
        change=options.change,
    )
    results = []
    for name in options.shape:
        for way in get_args(Way):
            found = measure(SHAPES[name], options.dtype, work, way, options.model_cache)
            results.append(found)
            sys.stdout.write(
                f"{name} {options.dtype} {way}: {found.total_s:.2f} s ({found.processor_s:.2f} s of processor), "
                f"{found.num_computed_tokens} tokens computed for "
                f"{found.num_generated_tokens}; log-probabilities of the last version's tokens differ by "
                f"{found.mean_difference:.2g} in the mean, {found.max_difference:.2g} at most\n"
            )
    if options.json:
        content = {**circumstances(), "torch": torch.__version__, "dtype": options.dtype, "work": asdict(work)}
        content["results"] = [asdict(result) for result in results]
        options.json.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
