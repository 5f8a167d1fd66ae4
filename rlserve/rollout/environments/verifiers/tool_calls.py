"""Tool calls in what the model said, in the form that Hermes and Qwen templates ask for::

<tool_call>
{"name": "add", "arguments": {"a": 1, "b": 2}}
</tool_call>
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass

MARK = "<tool_call>"
"""A chat template without it teaches the model another form."""
_CALL = re.compile(r"<tool_call>(.*?)(?:</tool_call>|\Z)", re.DOTALL)


@dataclass(frozen=True, kw_only=True)
class ToolCall:
    """A tool that the model asks for."""

    name: str
    arguments: str
    """JSON text, as the model wrote it or an object of it; it need not be what the tool takes."""


@dataclass(frozen=True, kw_only=True)
class Said:
    """A turn of the model, taken apart."""

    content: str | None
    """What stands before the first call; all of it where there is no call that can be read."""
    tool_calls: tuple[ToolCall, ...] = ()


def read_tool_calls(text: str) -> Said:
    """Take a turn apart. Where one call cannot be read, the whole turn counts as text, as servers of models do it."""
    calls = tuple(map(_read, _CALL.findall(text)))
    if not calls or None in calls:
        return Said(content=text)
    content = text.partition(MARK)[0].strip()
    return Said(content=content or None, tool_calls=tuple(call for call in calls if call is not None))


def _read(text: str) -> ToolCall | None:
    try:
        value = json.loads(text)
    except ValueError:
        return None
    if not isinstance(value, Mapping) or not isinstance(value.get("name"), str):
        return None
    arguments = value.get("arguments", {})
    shown = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
    return ToolCall(name=value["name"], arguments=shown)
