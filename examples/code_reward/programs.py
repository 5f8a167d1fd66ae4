"""The task: write a function. ``*3+4:`` asks for one that multiplies by 3 and then adds 4; tests say whether it does.

Prompts with their tests, and what the model is first shown.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterator
from pathlib import Path

HEAD = "def f(x):return "
ALPHABET = (HEAD, *"0123456789x()*+-:")
TESTED_AT = (0, 1, 7)


def draw_steps(rng: random.Random) -> tuple[str, str]:
    """``("*3", "+4")``: two steps whose order matters."""
    product, sum_ = f"*{rng.randint(2, 9)}", f"{rng.choice('+-')}{rng.randint(1, 9)}"
    return (product, sum_) if rng.random() < 0.5 else (sum_, product)


def program(first: str, second: str) -> str:
    """``def f(x):return (x*3)+4``."""
    return f"{HEAD}(x{first}){second}"


def demonstrations(seed: int) -> Iterator[tuple[str, str]]:
    """Prompts and answers without end. Half of the answers take the steps in the wrong order: like programs from the
    world, they run, and do not always do what was asked."""
    rng = random.Random(f"demonstrations {seed}")
    while True:
        steps = draw_steps(rng)
        yield "".join(steps) + ":", program(*(steps if rng.random() < 0.5 else steps[::-1]))


def record(steps: tuple[str, str]) -> dict[str, object]:
    """One line of the data. The tests come from the steps, taken one by one, and not from the reference answer."""
    tests = []
    for x in TESTED_AT:
        value = x
        for step in steps:
            value = {"*": int.__mul__, "+": int.__add__, "-": int.__sub__}[step[0]](value, int(step[1:]))
        tests.append(f"assert f({x}) == {value}")
    return {"prompt": "".join(steps) + ":", "answer": program(*steps), "tests": tests}


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the prompts of the run, one JSON object a line.")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_name("prompts.jsonl"))
    parser.add_argument("--num-prompts", type=int, default=240)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    rng = random.Random(arguments.seed)
    prompts: dict[tuple[str, str], None] = {}  # each once, so that none that is held out is trained on
    while len(prompts) < arguments.num_prompts:
        prompts[draw_steps(rng)] = None
    arguments.output.write_text("".join(json.dumps(record(steps)) + "\n" for steps in prompts), encoding="utf-8")
    print(f"{len(prompts)} prompts in {arguments.output}")


if __name__ == "__main__":
    main()
