"""Complete a file of code at a line, as an editor would ask for it.

python examples/code_assistant/complete.py FILE LINE http://127.0.0.1:8000 [--num-answers N] [--max-tokens N]
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import openai

MAX_PROMPT_CHARS = 3000


def beginning_of(path: Path, line: int) -> str:
    """What stands before the end of a line (from 1 on), cut at its front to what a small model has room for.

    Raises:
        SystemExit: the file has no such line.
    """
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    if not 1 <= line <= len(lines):
        raise SystemExit(f"{path} has {len(lines)} lines, and no line {line}")
    # Cut at a place that stays where it is while the writer types: what is in the cache begins alike.
    text = "".join(lines[:line]).rstrip("\n")
    num_cut = max(len(text) - MAX_PROMPT_CHARS, 0)
    return text[-(-num_cut // 1000) * 1000 :]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("line", type=int, help="the completion follows its end")
    parser.add_argument("url", nargs="?", default="http://127.0.0.1:8000")
    parser.add_argument("--num-answers", type=int, default=1)
    parser.add_argument("--max-tokens", type=int, default=48)
    arguments = parser.parse_args()
    client = openai.OpenAI(base_url=f"{arguments.url}/v1", api_key=os.environ.get("OPENAI_API_KEY", "none"))
    answer = client.completions.create(
        model="code-assistant",
        prompt=beginning_of(arguments.file, arguments.line),
        max_tokens=arguments.max_tokens,
        temperature=0.0 if arguments.num_answers == 1 else 0.6,
        n=arguments.num_answers,
        stop=["\n\n"],
        user=str(arguments.file.resolve()),  # one file, one replica
    )
    for choice in answer.choices:
        print(choice.text)
        if arguments.num_answers > 1:
            print(f"--- {choice.index + 1} of {arguments.num_answers}")


if __name__ == "__main__":
    main()
