"""Measure what LoRA adapters cost the decoding of a batch.

python benchmarks/adapters.py [--shape NAME …] [--rank N] [--num-samples N] [--rounds N] [--json FILE]

One engine decodes the same batch in turn: with nobody naming an adapter, with one for all, and with several that take
turns. The ratio is that of the processor times, its median over the rounds; all are of one run, so that a busy machine
weighs on all alike. Without adapters there must be no cost beside an engine that has none loaded.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # before torch is imported

import torch
from checks import Check
from machine import circumstances
from models import DEFAULT_CACHE, SHAPES, model_folder
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from rlserve.engine import Engine, EngineConfig, Request, SamplingParams

MODULES = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
NUM_ADAPTERS = 4
PROMPT_LENGTH, ANSWER_LENGTH = 32, 64
BARS = {
    "nobody names one": 1.05,  # the rest is noise
    "all name the same": 1.3,
    f"{NUM_ADAPTERS} adapters": 1.5,
    f"{NUM_ADAPTERS} adapters and the model": 1.5,
}
"""Most processor time, as a multiple of that of an engine without adapters."""


def write_adapter(model: Path, folder: Path, rank: int, seed: int) -> Path:
    """A random adapter of all linear layers."""
    torch.manual_seed(seed)
    adapted = get_peft_model(AutoModelForCausalLM.from_pretrained(model), LoraConfig(r=rank, target_modules=MODULES))
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_" in name:
                parameter.copy_(0.01 * torch.randn_like(parameter))
    adapted.save_pretrained(str(folder))
    return folder


def decode_s(engine: Engine, adapters: Sequence[str | None], num_samples: int) -> float:
    """Processor time of decoding a batch, whose samples have the adapters in turn."""
    for index in range(num_samples):
        prompt = tuple((7 * index + place) % 200 + 5 for place in range(PROMPT_LENGTH))
        sampling = SamplingParams(max_tokens=ANSWER_LENGTH, temperature=0.0, ignore_eos=True)
        name = adapters[index % len(adapters)]
        engine.add(Request(id=str(index), prompt_token_ids=prompt, sampling=sampling, adapter=name))
    while engine.stats().num_waiting or not engine.stats().num_running:
        engine.step()
    start_s = time.process_time()
    while engine.has_work:
        engine.step()
    return time.process_time() - start_s


def measure(shape: str, rank: int, num_samples: int, num_rounds: int, cache: Path) -> dict[str, float]:
    """Ratios of processor times to those of the engine without adapters."""
    config = EngineConfig(dtype="bfloat16", kv_cache_bytes=2**28, enable_prefix_caching=False)
    folder = model_folder(SHAPES[shape], cache)
    plain, engine = Engine(folder, config), Engine(folder, config)
    names = [f"adapter-{index}" for index in range(NUM_ADAPTERS)]
    with TemporaryDirectory() as written:
        for index, name in enumerate(names):
            engine.load_adapter(name, write_adapter(folder, Path(written) / name, rank, index))
    ways: dict[str, tuple[Engine, Sequence[str | None]]] = {
        "nobody names one": (engine, (None,)),
        "all name the same": (engine, names[:1]),
        f"{NUM_ADAPTERS} adapters": (engine, names),
        f"{NUM_ADAPTERS} adapters and the model": (engine, (*names, None)),
    }
    for each, adapters in ((plain, (None,)), *ways.values()):
        decode_s(each, adapters, num_samples)
    ratios: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(num_rounds):
        for name, (each, adapters) in ways.items():
            base_s = decode_s(plain, (None,), num_samples)
            ratios[name].append(decode_s(each, adapters, num_samples) / base_s)
    return {name: median(found) for name, found in ratios.items()}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", nargs="*", default=["6m"], choices=sorted(SHAPES))
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--num-samples", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--cache", type=Path, default=DEFAULT_CACHE)
    parser.add_argument("--json", type=Path, help="where to write the checks")
    arguments = parser.parse_args()
    checks: list[Check] = []
    for shape in arguments.shape:
        found = measure(shape, arguments.rank, arguments.num_samples, arguments.rounds, arguments.cache)
        for name, ratio in found.items():
            print(f"{shape}, rank {arguments.rank}, {arguments.num_samples} samples, {name}: {ratio:.2f} times")
            checks.append(Check(name=f"{shape}: {name}", value=ratio, bar=BARS[name], at_least=False))
    if arguments.json:
        content = {"circumstances": circumstances(), "checks": [check.line() for check in checks]}
        arguments.json.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return 0 if all(check.met for check in checks) else 1


if __name__ == "__main__":
    sys.exit(main())
