"""The program in an answer's text."""

from __future__ import annotations

import re

_FENCE = re.compile(r"^[ \t]*```[ \t]*(\w*)[^\n]*\n(.*?)(?:^[ \t]*```|\Z)", re.MULTILINE | re.DOTALL)
_PYTHON = ("python", "py", "python3")


def program_in(response: str) -> str:
    """The last fenced block of Python; else the last fenced block; else the whole text."""
    blocks: list[tuple[str, str]] = _FENCE.findall(response)
    named = [text for language, text in blocks if language.lower() in _PYTHON]
    return (named or [text for _, text in blocks] or [response])[-1]
