"""Write the prompts of the example, one JSON object a line: ``{"prompt": "34+58=", "answer": "92"}``."""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path(__file__).with_name("prompts.jsonl"))
    parser.add_argument("--num-prompts", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()

    rng = random.Random(arguments.seed)
    with arguments.output.open("w", encoding="utf-8") as file:
        for _ in range(arguments.num_prompts):
            first, second = rng.randrange(10, 1000), rng.randrange(10, 1000)
            record = {"prompt": f"{first}+{second}=", "answer": str(first + second)}
            file.write(json.dumps(record) + "\n")
    print(f"{arguments.num_prompts} prompts in {arguments.output}")


if __name__ == "__main__":
    main()
