"""Requests as writers of code make them, for ``rlserve bench``: modules of the standard library, typed pause by pause.

python examples/code_assistant/keystrokes.py keystrokes.jsonl [--num-writers N] [--num-pauses N] [--pause-s S]

Each writer goes on in a module of their own. At each pause the assistant is asked for the next tokens: the prompt is
that of the pause before and what was typed since.
"""

from __future__ import annotations

import argparse
import json
import random
import sysconfig
from pathlib import Path

from complete import MAX_PROMPT_CHARS

MAX_TOKENS = 32


def write_requests(path: Path, num_writers: int, num_pauses: int, pause_s: float) -> int:
    """Write all requests in the order of their times; returns their number."""
    chance = random.Random(0)
    modules = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    sources = [text for module in modules if len(text := module.read_text(encoding="utf-8")) > 2 * MAX_PROMPT_CHARS]
    requests = []
    for source in chance.sample(sources, num_writers):
        typed, at_s = chance.randrange(200, MAX_PROMPT_CHARS // 2), chance.uniform(0, pause_s)
        for _ in range(num_pauses):
            requests.append({"timestamp": round(at_s * 1000), "prompt": source[:typed], "output_length": MAX_TOKENS})
            typed = min(typed + chance.randrange(5, 60), MAX_PROMPT_CHARS)
            at_s += chance.expovariate(1 / pause_s)
    requests.sort(key=lambda request: request["timestamp"])
    path.write_text("".join(json.dumps(request) + "\n" for request in requests), encoding="utf-8")
    return len(requests)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    parser.add_argument("--num-writers", type=int, default=8)
    parser.add_argument("--num-pauses", type=int, default=40)
    parser.add_argument("--pause-s", type=float, default=0.5)
    arguments = parser.parse_args()
    number = write_requests(arguments.output, arguments.num_writers, arguments.num_pauses, arguments.pause_s)
    print(f"{number} requests in {arguments.output}")


if __name__ == "__main__":
    main()
