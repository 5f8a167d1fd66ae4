"""Messages of ``/v1/messages`` and the blocks that they consist of, and the messages that they come to."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field, Tag

from rlserve.serving.protocol.errors import ApiError
from rlserve.serving.protocol.kinds import TEXT_OR_LIST, by_type, known_type
from rlserve.serving.protocol.message import Message
from rlserve.serving.protocol.sampling import ApiModel, FirstOnly

_ONLY_TEXT = ": the model reads text alone"
_BLOCK_TYPES = ("text", "thinking", "tool_use", "tool_result")
_ERROR = "Error: "


class CacheControl(ApiModel):
    """Prompts are cached by themselves, wherever they begin alike."""

    type: Literal["ephemeral"]
    ttl: Literal["5m", "1h"] | None = None


class TextBlock(ApiModel):
    """Text."""

    type: Literal["text"]
    text: str
    cache_control: CacheControl | None = None
    citations: None = None


class ThinkingBlock(ApiModel):
    """What the model thought. Its signature is not looked at."""

    type: Literal["thinking"]
    thinking: str
    signature: str | None = None


class ToolUseBlock(ApiModel):
    """A call that the model made."""

    type: Literal["tool_use"]
    id: str
    name: str
    input: dict[str, Any]
    cache_control: CacheControl | None = None


ResultPart = Annotated[TextBlock, known_type(("text",), hint=_ONLY_TEXT)]
TextBlocks = Annotated[
    Annotated[str, Tag("text")] | Annotated[list[ResultPart], FirstOnly(), Tag("list")], TEXT_OR_LIST
]


class ToolResultBlock(ApiModel):
    """What came of it."""

    type: Literal["tool_result"]
    tool_use_id: str
    content: TextBlocks | None = None
    is_error: bool | None = None
    cache_control: CacheControl | None = None

    @property
    def text(self) -> str:
        """As the model reads it: an error says that it is one."""
        text = text_of(self.content or "")
        return f"{_ERROR}{text}" if self.is_error and not text.startswith(_ERROR) else text


Block = Annotated[
    Annotated[TextBlock, Tag("text")]
    | Annotated[ThinkingBlock, Tag("thinking")]
    | Annotated[ToolUseBlock, Tag("tool_use")]
    | Annotated[ToolResultBlock, Tag("tool_result")],
    by_type(),
    known_type(_BLOCK_TYPES, hint=_ONLY_TEXT),
]
Blocks = Annotated[Annotated[str, Tag("text")] | Annotated[list[Block], FirstOnly(), Tag("list")], TEXT_OR_LIST]


class InputMessage(ApiModel):
    """What somebody says."""

    role: Literal["user", "assistant", "system"]
    content: Blocks

    @property
    def blocks(self) -> Sequence[Any]:
        """Text is one."""
        return [TextBlock(type="text", text=self.content)] if isinstance(self.content, str) else self.content


InputMessages = Annotated[list[InputMessage], FirstOnly(), Field(min_length=1)]


def text_of(content: str | Sequence[TextBlock]) -> str:
    """The blocks of a text, a line each."""
    return content if isinstance(content, str) else "\n".join(block.text for block in content)


def to_messages(system: str, given: Sequence[InputMessage]) -> tuple[Message, ...]:
    """The messages of a conversation, for a chat template. Those of one role that follow each other become one, as they
    are one turn to this API.

    Raises:
        ApiError: there is the result of a call that was not made, or a block where it cannot be.
    """
    found = [Message(role="system", content=system)] if system else []
    names: dict[str, str] = {}
    for role, blocks in _turns(given):
        if role == "assistant":
            found.append(_assistant(blocks))
            names |= {block.id: block.name for block in blocks if isinstance(block, ToolUseBlock)}
        else:
            found += _others(role, blocks, names)
    return tuple(found)


def _turns(given: Sequence[InputMessage]) -> Iterator[tuple[str, list[Any]]]:
    role, blocks = given[0].role, list[Any]()
    for message in given:
        if message.role != role:
            yield role, blocks
            role, blocks = message.role, []
        blocks += message.blocks
    yield role, blocks


def _assistant(blocks: Sequence[Any]) -> Message:
    if any(isinstance(block, ToolResultBlock) for block in blocks):
        raise ApiError(400, "messages: results of tools are of the user, not of the assistant", "messages")
    thinking = "\n".join(block.thinking for block in blocks if isinstance(block, ThinkingBlock))
    texts = [block.text for block in blocks if isinstance(block, TextBlock)]
    calls = [
        {"id": block.id, "type": "function", "function": {"name": block.name, "arguments": json.dumps(block.input)}}
        for block in blocks
        if isinstance(block, ToolUseBlock)
    ]
    extra: dict[str, Any] = {"reasoning": thinking, "reasoning_content": thinking} if thinking else {}
    if calls:
        extra["tool_calls"] = calls
    return Message(role="assistant", content="".join(texts) if texts else None, **extra)


def _others(role: str, blocks: Sequence[Any], names: dict[str, str]) -> Iterator[Message]:
    """Of user and system: results, and the text between them."""
    texts: list[str] = []
    for block in blocks:
        if isinstance(block, TextBlock):
            texts.append(block.text)
            continue
        if not isinstance(block, ToolResultBlock) or role != "user":
            raise ApiError(400, f"messages: a block of type {block.type} cannot be of the {role}", "messages")
        if block.tool_use_id not in names:
            raise ApiError(400, "messages: a tool_result belongs to no tool_use that stands before it", "messages")
        if texts:
            yield _text_message(role, texts)
            texts = []
        called: dict[str, Any] = {"tool_call_id": block.tool_use_id, "name": names[block.tool_use_id]}
        yield Message(role="tool", content=block.text, **called)
    if texts:
        yield _text_message(role, texts)


def _text_message(role: str, texts: Sequence[str]) -> Message:
    return Message(role="system" if role == "system" else "user", content="\n".join(texts))
