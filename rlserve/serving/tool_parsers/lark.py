"""Calls as rules of a Lark grammar."""

from __future__ import annotations

import json
from collections.abc import Sequence

from rlserve.serving.tool_parsers.base import Tool

COMPACT = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
"""How arguments are written: as ``json.dumps`` writes them, which is what models have read."""


def literal(text: str) -> str:
    """A text as it stands in a rule."""
    return json.dumps(text, ensure_ascii=False)


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
