"""Calls as rules of a Lark grammar."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Sequence

from rlserve.serving.tool_parsers.base import Tool

COMPACT = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
"""How arguments are written: as ``json.dumps`` writes them, which is what models have read."""


def literal(text: str) -> str:
    """A text as it stands in a rule."""
    return json.dumps(text, ensure_ascii=False)


def spelled(text: str, tag_tokens: Collection[str]) -> str:
    """A text as it stands in a rule, with tags as the tokens that they are: a grammar of plain text never lets the
    model draw one of those, and is lost where the tokenizer writes one of its own accord."""
    tags = sorted(tag_tokens, key=len, reverse=True)
    pieces = re.split(f"({'|'.join(map(re.escape, tags))})", text) if tags else [text]
    return " ".join(piece if piece in tag_tokens else literal(piece) for piece in pieces if piece)


def call_rules(tools: Sequence[Tool], *, argument_key: str) -> list[str]:
    """Rules of which ``object`` is a call of one of the tools."""
    alternatives = " | ".join(f"tool_{index}" for index in range(len(tools)))
    rules = [f"object: {alternatives}"]
    for index, tool in enumerate(tools):
        head = f'{{"name": {json.dumps(tool.name)}, {json.dumps(argument_key)}: '
        schema = {**tool.parameters, "x-guidance": COMPACT}
        rules.append(f"tool_{index}: {literal(head)} arguments_{index} {literal('}')}")
        rules.append(f"arguments_{index}: %json {json.dumps(schema)}")
    return rules
