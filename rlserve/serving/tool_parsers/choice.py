"""From the tools of a request and its ``tool_choice`` to what the answer must be. Pure."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from rlserve.engine.requests.structured_output import StructuredOutput
from rlserve.errors import UserError
from rlserve.serving.tool_parsers.base import Tool, ToolFormat

AUTO, NONE, REQUIRED = "auto", "none", "required"
"""The model calls tools if it wants to, never, or one at least. What else is chosen is the name of the one to call."""


def forced_calls(
    tool_format: ToolFormat, tools: Sequence[Tool], choice: str, *, several: bool, tag_tokens: Collection[str] = ()
) -> StructuredOutput | None:
    """A grammar that forces calls of the tools; None where calls are free, or there are none.

    Args:
        tag_tokens: tags that are tokens of their own.
        several: more calls than one may be made, where none is named.

    Raises:
        UserError: the tool that is to be called is none of the tools.
    """
    if choice in (AUTO, NONE):
        return None
    callable_tools = [tool for tool in tools if choice in (REQUIRED, tool.name)]
    if not callable_tools:
        names = ", ".join(tool.name for tool in tools) or "none"
        raise UserError(f"tool_choice names {choice!r}, and the tools are: {names}")
    grammar = tool_format.grammar(callable_tools, several=several and choice == REQUIRED, tag_tokens=tag_tokens)
    return StructuredOutput(kind="grammar", text=grammar)
