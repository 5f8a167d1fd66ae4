"""Measure what structured outputs cost: a batch with grammars beside the same batch without.

python benchmarks/structured.py [--shape NAME …] [--batch N] [--tokens N] [--rounds N] [--threads N] [--json FILE]

All requests of a batch have as many tokens in both: the grammars are such that no answer ends before. The two take
turns. What is held to the bar is processor time, which with one thread is what an idle machine takes; wall time is told
beside it. The tokenizer is a byte-level BPE of the standard library's sources, as large as the model's vocabulary if
these give so many.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import sysconfig
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # before torch is imported

import torch
from checks import Check
from machine import circumstances
from models import DEFAULT_CACHE, SHAPES, ModelShape, model_folder
from tokenizers import Tokenizer, decoders, pre_tokenizers, trainers
from tokenizers import models as tokenizer_models
from transformers import PreTrainedTokenizerFast

from rlserve.engine import Engine, EngineConfig, Request, RequestOutput, SamplingParams, StructuredOutput

MAX_SLOWDOWN = 0.10
PROMPT_LENGTH = 64
_END = "<|end|>"
_RECORD = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 24},
        "age": {"type": "integer", "minimum": 0, "maximum": 130},
        "role": {"enum": ["reader", "writer", "owner"]},
        "tags": {"type": "array", "items": {"type": "string", "maxLength": 12}, "maxItems": 4},
        "home": {"anyOf": [{"type": "string", "format": "date"}, {"type": "null"}]},
    },
    "required": ["name", "age", "role", "tags", "home"],
    "additionalProperties": False,
}
GRAMMARS = {
    "json_schema": StructuredOutput(
        kind="json_schema", text=json.dumps({"type": "array", "items": _RECORD, "minItems": 10_000})
    ),
    "regex": StructuredOutput(kind="regex", text=r"([A-Z][a-z]{1,12} )+[.]{500}"),
    "grammar": StructuredOutput(
        kind="grammar", text='start: (sum "\\n"){10000,}\nsum: N (("+" | "*") N)*\nN: /[0-9]{1,6}/'
    ),
}


@dataclass(frozen=True, kw_only=True)
class StructuredResult:
    """One model and kind of grammar; seconds of the whole batch, in the order of the rounds."""

    shape: str
    vocab_size: int
    num_tokenizer_tokens: int
    kind: str
    batch_size: int
    num_tokens: int
    """Of each answer."""
    plain_s: list[float]
    structured_s: list[float]
    plain_processor_s: list[float]
    """Of all threads: a busy machine hardly changes it."""
    structured_processor_s: list[float]
    slowdown: float
    """The least time of the one divided by that of the other, less 1."""
    processor_slowdown: float
    """Of processor time, median over the rounds."""


def folder_with_tokenizer(shape: ModelShape, cache: Path) -> Path:
    """A model that has a tokenizer, and an end-of-sequence token; written on first use."""
    folder = cache / f"qwen3-{shape.name}-tokenizer"
    if not (folder / "tokenizer.json").exists():
        source = model_folder(shape, cache)
        folder.mkdir(exist_ok=True)
        for weights in source.glob("*.safetensors*"):
            (folder / weights.name).unlink(missing_ok=True)
            (folder / weights.name).symlink_to(weights)
        config = json.loads((source / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"eos_token_id": 0}))
        tokenizer = Tokenizer(tokenizer_models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=shape.vocab_size,
            special_tokens=[_END],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        tokenizer.train([str(path) for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))], trainer)
        PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=_END).save_pretrained(folder)
    return folder


def measure(shape: ModelShape, options: argparse.Namespace) -> list[StructuredResult]:
    """All kinds of grammars with one model."""
    folder = folder_with_tokenizer(shape, options.cache)
    max_model_len = PROMPT_LENGTH + options.tokens + 1
    engine = Engine(folder, EngineConfig(dtype="bfloat16", kv_cache_bytes=2**29, max_model_len=max_model_len))
    results = []
    for kind, grammar in GRAMMARS.items():
        _time(engine, options, None)
        _time(engine, options, grammar)  # compiles
        rounds = [(_time(engine, options, None), _time(engine, options, grammar)) for _ in range(options.rounds)]
        plain, structured = zip(*rounds, strict=True)
        processor_ratios = [with_it.processor_s / without.processor_s for without, with_it in rounds]
        results.append(
            StructuredResult(
                shape=shape.name,
                vocab_size=shape.vocab_size,
                num_tokenizer_tokens=len(PreTrainedTokenizerFast.from_pretrained(folder)),
                kind=kind,
                batch_size=options.batch,
                num_tokens=options.tokens,
                plain_s=[times.wall_s for times in plain],
                structured_s=[times.wall_s for times in structured],
                plain_processor_s=[times.processor_s for times in plain],
                structured_processor_s=[times.processor_s for times in structured],
                slowdown=min(times.wall_s for times in structured) / min(times.wall_s for times in plain) - 1,
                processor_slowdown=statistics.median(processor_ratios) - 1,
            )
        )
    return results


@dataclass(frozen=True, kw_only=True)
class _Times:
    wall_s: float
    processor_s: float


def _time(engine: Engine, options: argparse.Namespace, grammar: StructuredOutput | None) -> _Times:
    """A whole batch."""
    sampling = SamplingParams(max_tokens=options.tokens, ignore_eos=grammar is None, structured_output=grammar)
    prompt = tuple(range(1, PROMPT_LENGTH + 1))
    for index in range(options.batch):
        engine.add(Request(id=str(index), prompt_token_ids=(index + 1, *prompt[1:]), sampling=sampling))
    outputs: list[RequestOutput] = []
    start_s, processor_start_s = time.perf_counter(), time.process_time()
    while engine.has_work:
        outputs += engine.step()
    times = _Times(wall_s=time.perf_counter() - start_s, processor_s=time.process_time() - processor_start_s)
    problems = [output.error for output in outputs if output.error is not None]
    assert not problems, problems[0]
    assert all(len(output.samples[0].tokens) == options.tokens for output in outputs)
    return times


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print a line for each, and write the JSON; 1 where a slowdown is above its bar."""
    parser = argparse.ArgumentParser(prog="benchmarks/structured.py", description=__doc__.splitlines()[0])
    parser.add_argument("--shape", nargs="+", choices=SHAPES, default=["75m"], metavar="NAME")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--cache", type=Path, default=DEFAULT_CACHE)
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    results = []
    for name in options.shape:
        measured = measure(SHAPES[name], options)
        results += measured
        for result in measured:
            print(
                f"{name:<6} {result.kind:<12} {min(result.plain_s):6.2f} s {min(result.structured_s):6.2f} s "
                f"{100 * result.slowdown:+6.1f} %, of processor time {100 * result.processor_slowdown:+6.1f} %"
            )
    checks = [
        Check(
            name=f"{result.shape}, {result.kind}: slowdown in processor time",
            value=result.processor_slowdown,
            bar=MAX_SLOWDOWN,
            at_least=False,
        )
        for result in results
    ]
    if options.json:
        content = {**circumstances(), "num_threads": options.threads, "torch": torch.__version__}
        content |= {"checks": [check.line() for check in checks], "results": [asdict(result) for result in results]}
        options.json.write_text(json.dumps(content, indent=1) + "\n")
    return 0 if all(check.met for check in checks) else 1


if __name__ == "__main__":
    sys.exit(main())
