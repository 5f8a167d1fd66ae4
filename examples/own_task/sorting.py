"""The task: put digits in order. ``402=`` is answered by ``024``. Prompts, and what the model is first shown."""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterator
from pathlib import Path

ALPHABET = "0123456789="
MIN_NUM_DIGITS, MAX_NUM_DIGITS = 3, 7


def draw_prompt(rng: random.Random) -> str:
    """``402=``."""
    return "".join(rng.choices("0123456789", k=rng.randint(MIN_NUM_DIGITS, MAX_NUM_DIGITS))) + "="


def demonstrations(seed: int) -> Iterator[tuple[str, str]]:
    """Prompts and answers without end. Half of the answers run upwards, the others downwards: like text from the
    world, they show how it is done, and not what you want."""
    rng = random.Random(f"demonstrations {seed}")
    while True:
        prompt = draw_prompt(rng)
        yield prompt, "".join(sorted(prompt[:-1], reverse=rng.random() < 0.5))


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the prompts of the run, one JSON object a line.")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_name("prompts.jsonl"))
    parser.add_argument("--num-prompts", type=int, default=1200)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    rng = random.Random(arguments.seed)
    prompts: dict[str, None] = {}  # each once, so that none that is held out is trained on
    while len(prompts) < arguments.num_prompts:
        prompts[draw_prompt(rng)] = None
    lines = [json.dumps({"prompt": prompt, "answer": "".join(sorted(prompt[:-1]))}) + "\n" for prompt in prompts]
    arguments.output.write_text("".join(lines), encoding="utf-8")
    print(f"{len(lines)} prompts in {arguments.output}")


if __name__ == "__main__":
    main()
