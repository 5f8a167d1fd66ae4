"""The task, whose true quality a program knows: put the digits of a prompt in rising order. 402= becomes 024.

Demonstrations and preferences are made by program too. A demonstrator sorts upwards or downwards, as it pleases him,
and is careless now and then. A judge who compares two answers prefers the better one by ``quality``.

python examples/reward_model/sorting.py        writes demonstrations.jsonl, preferences.jsonl and prompts.jsonl
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice, pairwise
from pathlib import Path

ALPHABET = "0123456789="
MIN_NUM_DIGITS, MAX_NUM_DIGITS = 3, 6
NUM_DEMONSTRATIONS, NUM_PAIRS, NUM_PROMPTS = 4_000, 3_000, 1_500
SEED = 0


def quality(prompt: str, answer: str) -> float:
    """Share of neighbouring digits that do not fall, where the digits are those of the prompt; else 0."""
    digits = prompt.removesuffix("=")
    if sorted(answer) != sorted(digits):
        return 0.0
    return sum(left <= right for left, right in pairwise(answer)) / (len(digits) - 1)


def prompts(rng: random.Random) -> Iterator[str]:
    """Prompts without end, none twice."""
    seen = set()
    while True:
        prompt = "".join(rng.choices("0123456789", k=rng.randint(MIN_NUM_DIGITS, MAX_NUM_DIGITS))) + "="
        if prompt not in seen:
            seen.add(prompt)
            yield prompt


def demonstration(prompt: str, rng: random.Random) -> str:
    """An answer of somebody who knows what sorting is, and not what is wanted."""
    digits = sorted(prompt.removesuffix("="), reverse=rng.random() < 0.5)
    if rng.random() < 0.3:  # careless: two neighbours change places
        place = rng.randrange(len(digits) - 1)
        digits[place], digits[place + 1] = digits[place + 1], digits[place]
    return "".join(digits)


def odd_answer(prompt: str, rng: random.Random) -> str:
    """An answer that no demonstrator would give, but a policy may try: a judge must have seen such, too."""
    digits = rng.sample(prompt.removesuffix("="), len(prompt) - 1)
    match rng.randrange(3):
        case 0:
            digits[rng.randrange(len(digits))] = rng.choice("0123456789")
        case 1:
            digits.pop(rng.randrange(len(digits)))
    return "".join(digits)


def preference(prompt: str, rng: random.Random) -> tuple[str, str]:
    """Two answers of different quality, the better one first."""
    while True:
        makers = [rng.choices((demonstration, odd_answer), (3, 1))[0] for _ in range(2)]
        answers = sorted((make(prompt, rng) for make in makers), key=lambda answer: -quality(prompt, answer))
        if quality(prompt, answers[0]) > quality(prompt, answers[1]):
            return answers[0], answers[1]


def write(path: Path, rows: Iterable[Mapping[str, str]]) -> None:
    """One row a line."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent)
    folder, rng = parser.parse_args().output, random.Random(SEED)
    stream = prompts(rng)
    shown = list(islice(stream, NUM_DEMONSTRATIONS))
    write(folder / "demonstrations.jsonl", ({"prompt": each, "completion": demonstration(each, rng)} for each in shown))
    compared = [(each, *preference(each, rng)) for each in islice(stream, NUM_PAIRS)]
    pairs = ({"prompt": prompt, "chosen": chosen, "rejected": rejected} for prompt, chosen, rejected in compared)
    write(folder / "preferences.jsonl", pairs)
    write(folder / "prompts.jsonl", ({"prompt": each} for each in islice(stream, NUM_PROMPTS)))


if __name__ == "__main__":
    main()
