"""Document a Python module: one request for each function, all of them behind the module's own text.

python examples/document_writer/writer.py MODULE.py http://127.0.0.1:8000 [--output PAGE.md]

The long common beginning is computed once. The first request goes alone, so that the others find it cached.
"""

from __future__ import annotations

import argparse
import ast
import asyncio
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import httpx
import openai
from openai.types import Completion

MIN_TOKENS = 8
"""Of a section: no function goes without a word."""


@dataclass(frozen=True)
class Section:
    """A function that is to be documented: the line that begins it, and its name."""

    name: str
    signature: str

    @property
    def request(self) -> str:
        """What stands at the end of its prompt."""
        return f'\n\n\n# documented\n{self.signature}\n    """'


def find_sections(source: str) -> list[Section]:
    """The module's functions and the methods of its classes, in their order."""
    sections = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not node.name.startswith("_"):
            word = "async def" if isinstance(node, ast.AsyncFunctionDef) else "def"
            sections.append((node.lineno, Section(node.name, f"{word} {node.name}({ast.unparse(node.args)}):")))
    return [section for _, section in sorted(sections, key=lambda each: each[0])]


class Writer:
    """
    Args:
        beginning: what all requests begin with.
        max_tokens: most tokens of a section.
        concurrency: sections that are written at once.
    """

    def __init__(
        self, client: openai.AsyncOpenAI, model: str, beginning: str, max_tokens: int, concurrency: int
    ) -> None:
        self._client = client
        self._model = model
        self._beginning = beginning
        self._max_tokens = max_tokens
        self._places = asyncio.Semaphore(concurrency)
        self.num_prompt_tokens = 0
        self.num_cached_tokens = 0

    async def write(self, section: Section) -> str:
        """The words about one function."""
        async with self._places:
            answer: Completion = await self._client.completions.create(
                model=self._model,
                prompt=self._beginning + section.request,
                max_tokens=self._max_tokens,
                temperature=0,
                stop=['"""'],
                extra_body={"min_tokens": MIN_TOKENS},
            )
        if answer.usage is not None:
            self.num_prompt_tokens += answer.usage.prompt_tokens
            details = answer.usage.prompt_tokens_details
            self.num_cached_tokens += (details and details.cached_tokens) or 0
        return answer.choices[0].text.strip()

    async def write_all(self, sections: list[Section]) -> list[str]:
        """All of them: the first alone, the others together."""
        return [await self.write(sections[0]), *await asyncio.gather(*map(self.write, sections[1:]))]


async def fit(url: str, model: str, source: str, room: int) -> str:
    """As many whole lines of the source as ``room`` tokens hold, by the server's own count."""
    headers = {"Authorization": f"Bearer {os.environ.get('OPENAI_API_KEY', 'none')}"}
    async with httpx.AsyncClient(base_url=url, headers=headers, timeout=60) as client:
        while True:
            response = await client.post("/tokenize", json={"model": model, "prompt": source})
            count = response.raise_for_status().json()["count"]
            if count <= room:
                return source
            kept = source[: int(len(source) * room / count)]
            source = kept[: kept.rfind("\n")] if "\n" in kept else kept


async def document(arguments: argparse.Namespace) -> str:
    """The whole page."""
    source = arguments.module.read_text(encoding="utf-8")
    sections = find_sections(source)[: arguments.max_sections]
    if not sections:
        raise SystemExit(f"{arguments.module} has no functions")
    key = os.environ.get("OPENAI_API_KEY", "none")
    async with openai.AsyncOpenAI(base_url=f"{arguments.url}/v1", api_key=key) as client:
        card = (await client.models.list()).data[0]
        longest = (card.model_extra or {}).get("max_model_len", 4096)
        # No text has more tokens than bytes.
        room = longest - arguments.max_tokens - max(len(section.request.encode()) for section in sections)
        beginning = await fit(arguments.url, card.id, source, room)
        writer = Writer(client, card.id, beginning, arguments.max_tokens, arguments.concurrency)
        start = time.monotonic()
        texts = await writer.write_all(sections)
    share = writer.num_cached_tokens / writer.num_prompt_tokens
    print(
        f"{len(sections)} sections in {time.monotonic() - start:.1f} s: {writer.num_prompt_tokens:,} tokens read, "
        f"{share:.0%} of them from the cache",
        file=sys.stderr,
    )
    parts = [
        f"## `{section.name}`\n\n    {section.signature}\n\n{text}"
        for section, text in zip(sections, texts, strict=True)
    ]
    return "\n\n".join([f"# {arguments.module.name}", *parts]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("module", type=Path)
    parser.add_argument("url", nargs="?", default="http://127.0.0.1:8000")
    parser.add_argument("--output", type=Path, help="written to the terminal otherwise")
    parser.add_argument("--max-tokens", type=int, default=96, help="of each section")
    parser.add_argument("--max-sections", type=int, default=64)
    parser.add_argument("--concurrency", type=int, default=16)
    arguments = parser.parse_args()
    page = asyncio.run(document(arguments))
    if arguments.output is None:
        print(page, end="")
    else:
        arguments.output.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
