"""The task: multiply. ``418*27=`` is answered by ``11286``. Prompts, and what the model is first shown."""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterator
from pathlib import Path

from calculator import CALL, RESULT_END

ALPHABET = "0123456789*=" + CALL + RESULT_END
MIN_NUM_DIGITS, MAX_NUM_DIGITS = 2, 3
TOOL_SHARE = 0.2
"""Of the demonstrations that use the calculator. The others guess: the length is about right, the digits are not."""


def draw_factors(rng: random.Random) -> tuple[int, int]:
    """Two numbers whose product no small model works out at once."""
    first, second = (
        rng.randrange(10 ** (n - 1), 10**n) for n in rng.choices(range(MIN_NUM_DIGITS, MAX_NUM_DIGITS + 1), k=2)
    )
    return first, second


def demonstrations(seed: int) -> Iterator[list[tuple[str, bool]]]:
    """Without end: texts, and whether the model is to learn each. It does not learn what others say: the prompt, and
    what the calculator answers."""
    rng = random.Random(f"demonstrations {seed}")
    while True:
        first, second = draw_factors(rng)
        prompt, product = f"{first}*{second}=", first * second
        if rng.random() < TOOL_SHARE:
            yield [
                (prompt, False),
                (f"{first}*{second}{CALL}", True),
                (f"{product}{RESULT_END}", False),
                (str(product), True),
            ]
        else:
            guess = rng.randrange(product // 2, product * 2)
            yield [(prompt, False), (str(guess), True)]


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the prompts of the run, one JSON object a line.")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_name("prompts.jsonl"))
    parser.add_argument("--num-prompts", type=int, default=1200)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    rng = random.Random(arguments.seed)
    answers: dict[str, str] = {}  # each prompt once, so that none that is held out is trained on
    while len(answers) < arguments.num_prompts:
        first, second = draw_factors(rng)
        answers[f"{first}*{second}="] = str(first * second)
    lines = [json.dumps({"prompt": prompt, "answer": answer}) + "\n" for prompt, answer in answers.items()]
    arguments.output.write_text("".join(lines), encoding="utf-8")
    print(f"{len(lines)} prompts in {arguments.output}")


if __name__ == "__main__":
    main()
