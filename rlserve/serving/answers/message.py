"""What an assistant's message is made of: reasoning, then content and calls of tools."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rlserve.serving.reasoning.base import ReasoningParser
from rlserve.serving.tool_parsers.base import CallDelta, ToolNews, ToolParser


@dataclass(frozen=True, kw_only=True)
class MessageNews:
    """What is new of one message."""

    reasoning: str = ""
    content: str = ""
    calls: tuple[CallDelta, ...] = ()
    has_called: bool = False
    """Whether it has a call, new or not."""

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to tell."""
        return not (self.reasoning or self.content or self.calls)


class MessageReader:
    """Takes the text of one answer. None for what is not looked for: it stays content."""

    def __init__(self, reasoning: ReasoningParser | None, tools: ToolParser | None) -> None:
        self._reasoning = reasoning
        self._tools = tools
        self._has_called = False

    def take(self, text: str, *, is_last: bool) -> MessageNews:
        """The next piece; ``is_last``: nothing follows."""
        reasoning = ""
        if self._reasoning is not None:
            splits = [self._reasoning.push(text), *([self._reasoning.end()] if is_last else [])]
            reasoning = "".join(split.reasoning for split in splits)
            text = "".join(split.content for split in splits)
        news = [ToolNews(content=text)]
        if self._tools is not None:
            news = [self._tools.push(text), *([self._tools.end()] if is_last else [])]
        calls = tuple(call for each in news for call in each.calls)
        self._has_called = self._has_called or bool(calls)
        content = "".join(each.content for each in news)
        return MessageNews(reasoning=reasoning, content=content, calls=calls, has_called=self._has_called)


def call_deltas(calls: Sequence[CallDelta]) -> list[dict[str, Any]]:
    """As chunks have them: each call once in a chunk."""
    found: list[dict[str, Any]] = []
    for call in calls:
        if call.name is not None:
            function = {"name": call.name, "arguments": call.arguments}
            found.append({"index": call.index, "id": call.id, "type": "function", "function": function})
        elif found and found[-1]["index"] == call.index:
            found[-1]["function"]["arguments"] += call.arguments
        else:
            found.append({"index": call.index, "function": {"arguments": call.arguments}})
    return found


def whole_calls(calls: Sequence[CallDelta]) -> list[dict[str, Any]]:
    """As whole messages have them."""
    found: list[dict[str, Any]] = []
    for call in calls:
        if call.name is not None:
            function = {"name": call.name, "arguments": ""}
            found.append({"id": call.id, "type": "function", "function": function})
        found[call.index]["function"]["arguments"] += call.arguments
    return found
