"""Measure what training adds to the memory of each rank, and how long a step takes.

python benchmarks/trainer_memory.py [--case NAME …] [--vocabulary N] [--model-cache DIR] [--json FILE]

Cases of a large vocabulary have one rank and a narrow model; those of 75 M parameters have 1, 2 and 4 ranks, which
share the optimizer's state, or everything (-full, and -zero-3 with DeepSpeed), and so few tokens that weights,
gradients and the optimizer's state are nearly all there is, but for those of long answers, with and without activation
checkpointing. With -shared-trunk policy and critic are one network. Each rank is a process. Its memory is counted from
when all code is loaded.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import os
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # before torch is imported

from machine import circumstances
from models import DEFAULT_CACHE, SHAPES, model_folder
from process_usage import held_bytes, peak_bytes
from rank_processes import run_ranks

if TYPE_CHECKING:
    from rlserve.trainers import Batch, TrainerConfig

MAX_ADDED_BYTES = int(0.6 * 2**30)
"""What the cases of 4,096 response tokens may add, with the usual vocabulary."""


@dataclass(frozen=True, kw_only=True)
class MemoryCase:
    """Samples of one length, cut into logical shards."""

    name: str
    num_samples: int
    num_response_tokens: int
    num_logical_shards: int
    kl_coefficient: float = 0.0
    model: str | None = None
    """Of ``models.SHAPES``; None for the narrow one with a large vocabulary."""
    num_ranks: int = 1
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Of the trainer, beside the defaults."""

    def config(self) -> TrainerConfig:
        """Of the trainer."""
        from rlserve.trainers import DeepSpeedTrainerConfig, TorchTrainerConfig

        if "zero_stage" in self.settings:
            return DeepSpeedTrainerConfig(**self.settings)
        return TorchTrainerConfig(num_logical_shards=self.num_logical_shards, **self.settings)


CASES = {
    case.name: case
    for case in (
        MemoryCase(name="12-shards", num_samples=8, num_response_tokens=512, num_logical_shards=12),
        MemoryCase(name="1-shard", num_samples=8, num_response_tokens=512, num_logical_shards=1),
        MemoryCase(name="8k-answer", num_samples=1, num_response_tokens=8192, num_logical_shards=12),
        *(
            MemoryCase(
                name=f"75m-{num_ranks}-rank{'s' * (num_ranks > 1)}{suffix}",
                num_samples=12,
                num_response_tokens=16,
                num_logical_shards=12,
                model="75m",
                num_ranks=num_ranks,
                settings=settings,
            )
            for suffix, settings in (("", {}), ("-full", {"sharding": "full"}), ("-zero-3", {"zero_stage": 3}))
            for num_ranks in (1, 2, 4)
        ),
        MemoryCase(
            name="75m-1-rank-shared-trunk",
            num_samples=12,
            num_response_tokens=16,
            num_logical_shards=12,
            model="75m",
            settings={"critic_trunk": "shared"},
        ),
        *(
            MemoryCase(
                name="75m-long-answers" + "-checkpointed" * is_checkpointed,
                num_samples=4,
                num_response_tokens=1024,
                num_logical_shards=2,
                model="75m",
                settings={"activation_checkpointing": is_checkpointed},
            )
            for is_checkpointed in (False, True)
        ),
    )
}


@dataclass(frozen=True, kw_only=True)
class MemoryResult:
    """Of one case, or of one rank of it."""

    case: str
    added_bytes: int
    """The most memory held during two steps, less what was held before the model was loaded; of the rank with most."""
    held_bytes: int
    """The same after the steps."""
    bytes_per_parameter: float
    """``added_bytes`` by the parameters of the policy; those of the critic are included in the bytes alone."""
    step_s: float
    """The second step."""


def write_model(folder: Path, vocab_size: int) -> None:
    """A Qwen3 model of two narrow layers and a head of its own, with random weights."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=vocab_size,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=16384,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )
    Qwen3ForCausalLM(config).save_pretrained(folder)


def measure_here(case: MemoryCase, folder: Path, small_folder: Path, rank: int, port: int) -> MemoryResult:
    """Take two steps as one rank, after one on a small model, which loads all code that is needed."""
    from rlserve.trainers import Membership, PPOConfig, create_trainer

    place = Membership(
        rank=rank, num_ranks=case.num_ranks, host="127.0.0.1", port=port, secret="benchmark", generation=1
    )

    config = case.config()
    algorithm = PPOConfig(kl_coefficient=case.kl_coefficient)
    small = create_trainer(config, algorithm, model_path=str(small_folder), seed=0, device="cpu")
    small.step(make_batch(case, _vocab_size(small_folder), step=0))
    small.leave()
    del small
    if case.settings.get("sharding") == "full" and case.num_ranks > 1:
        import torch._dynamo  # noqa: F401  fully_shard does
    gc.collect()
    before = held_bytes()
    trainer = create_trainer(
        config,
        algorithm,
        model_path=str(folder),
        seed=0,
        device="cpu",
        membership=place,
        load_weights=rank == 0,
    )
    step_s = 0.0
    for step in range(2):
        batch = make_batch(case, _vocab_size(folder), step)
        start = time.perf_counter()
        trainer.step(batch)
        step_s = time.perf_counter() - start
    added_bytes = peak_bytes() - before
    return MemoryResult(
        case=case.name,
        added_bytes=added_bytes,
        held_bytes=held_bytes() - before,
        bytes_per_parameter=added_bytes / _num_parameters(folder),
        step_s=step_s,
    )


def make_batch(case: MemoryCase, vocab_size: int, step: int) -> Batch:
    """Random answers to prompts of one token."""
    import numpy as np

    from rlserve.trainers import Batch

    rng = np.random.default_rng(step)
    num_tokens = case.num_samples * case.num_response_tokens
    log_probs = np.full(num_tokens, -np.log(vocab_size), dtype=np.float32)
    return Batch(
        sample_ids=tuple(f"{step}:{index}" for index in range(case.num_samples)),
        group_ids=("0",) * case.num_samples,
        prompt_lengths=np.ones(case.num_samples, dtype=np.int32),
        response_lengths=np.full(case.num_samples, case.num_response_tokens, dtype=np.int32),
        token_ids=rng.integers(0, vocab_size, num_tokens + case.num_samples).astype(np.int32),
        loss_mask=np.ones(num_tokens, dtype=bool),
        log_probs=log_probs,
        behaviour_log_probs=log_probs,
        weight_versions=np.full(num_tokens, step, dtype=np.int32),
        rewards=rng.normal(size=case.num_samples).astype(np.float32),
        finish_reasons=("length",) * case.num_samples,
    )


def measure(case: MemoryCase, folder: Path, small_folder: Path) -> MemoryResult:
    """Take the steps in one process for each rank; the result of the rank that needs most.

    Raises:
        RuntimeError: a rank failed; it has said why on standard error.
    """
    command = [sys.executable, __file__, "--here", case.name, "--folders", str(folder), str(small_folder)]
    found = run_ranks(command, num_ranks=case.num_ranks, what=case.name)
    results = [MemoryResult(**result) for result in found]
    return max(results, key=lambda result: result.added_bytes)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print a line for each case, and write the JSON."""
    parser = argparse.ArgumentParser(prog="benchmarks/trainer_memory.py", description=__doc__.splitlines()[0])
    parser.add_argument("--case", nargs="+", choices=list(CASES), default=list(CASES), metavar="NAME")
    parser.add_argument("--vocabulary", type=int, default=151936)
    parser.add_argument("--model-cache", type=Path, default=DEFAULT_CACHE, metavar="DIR")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--here", choices=list(CASES), help=argparse.SUPPRESS)
    parser.add_argument("--folders", type=Path, nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--rank", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.here:
        found = measure_here(CASES[options.here], *options.folders, options.rank, options.port)
        sys.stdout.write(json.dumps(asdict(found)))
        return
    results = []
    with tempfile.TemporaryDirectory() as scratch:
        folder, small_folder = Path(scratch, "model"), Path(scratch, "small")
        write_model(folder, options.vocabulary)
        write_model(small_folder, 64)
        for name in options.case:
            case = CASES[name]
            model = folder if case.model is None else model_folder(SHAPES[case.model], options.model_cache)
            result = measure(case, model, small_folder)
            results.append(result)
            sys.stdout.write(
                f"{name}: {result.added_bytes / 2**20:,.0f} MiB added, {result.bytes_per_parameter:.1f} bytes a "
                f"parameter, {result.held_bytes / 2**20:,.0f} MiB between steps, step {result.step_s:.2f} s\n"
            )
    if options.json:
        content = {**circumstances(), "vocabulary": options.vocabulary, "max_added_bytes": MAX_ADDED_BYTES}
        content["results"] = [asdict(result) for result in results]
        content["checks"] = [
            {"case": result.case, "passes": result.added_bytes <= MAX_ADDED_BYTES}
            for result in results
            if CASES[result.case].model is None
        ]
        options.json.write_text(json.dumps(content, indent=1) + "\n")


def _num_parameters(folder: Path) -> int:
    from safetensors import safe_open

    with safe_open(folder / "model.safetensors", framework="pt") as file:
        return sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118


def _vocab_size(folder: Path) -> int:
    size: int = json.loads((folder / "config.json").read_text())["vocab_size"]
    return size


if __name__ == "__main__":
    main()
