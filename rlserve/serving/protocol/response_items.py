"""Items of ``/v1/responses``, and the messages that they come to."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import Field, Tag

from rlserve.serving.protocol.errors import ApiError
from rlserve.serving.protocol.kinds import TEXT_OR_LIST, by_type, known_type
from rlserve.serving.protocol.message import Message
from rlserve.serving.protocol.sampling import ApiModel, FirstOnly

ItemStatus = Literal["in_progress", "completed", "incomplete"]
_ONLY_TEXT = ": the model reads text alone"
_PART_TYPES = ("input_text", "output_text", "refusal")
_ITEM_TYPES = ("message", "function_call", "function_call_output", "reasoning")


class InputText(ApiModel):
    """Text that somebody wrote."""

    type: Literal["input_text"]
    text: str


class OutputText(ApiModel):
    """Text that the model wrote."""

    type: Literal["output_text"]
    text: str
    annotations: list[Any] | None = None
    logprobs: list[Any] | None = None


class Refusal(ApiModel):
    """The model's refusal."""

    type: Literal["refusal"]
    refusal: str

    @property
    def text(self) -> str:
        """What it says."""
        return self.refusal


ContentPart = Annotated[
    Annotated[InputText, Tag("input_text")]
    | Annotated[OutputText, Tag("output_text")]
    | Annotated[Refusal, Tag("refusal")],
    by_type(),
    known_type(_PART_TYPES, hint=_ONLY_TEXT),
]
Content = Annotated[Annotated[str, Tag("text")] | Annotated[list[ContentPart], FirstOnly(), Tag("list")], TEXT_OR_LIST]


class MessageItem(ApiModel):
    """What somebody says."""

    type: Literal["message"] = "message"
    role: Literal["user", "assistant", "system", "developer"]
    content: Content
    id: str | None = None
    status: ItemStatus | None = None
    phase: Literal["commentary", "final_answer"] | None = None


class FunctionCallItem(ApiModel):
    """A call that the model made."""

    type: Literal["function_call"]
    call_id: str
    name: str
    arguments: str
    id: str | None = None
    status: ItemStatus | None = None


class FunctionOutputItem(ApiModel):
    """What came of it."""

    type: Literal["function_call_output"]
    call_id: str
    output: Content
    id: str | None = None
    status: ItemStatus | None = None


class SummaryText(ApiModel):
    """A part of a summary."""

    type: Literal["summary_text"]
    text: str


class ReasoningText(ApiModel):
    """A part of what the model thought."""

    type: Literal["reasoning_text", "text"]
    text: str


class ReasoningItem(ApiModel):
    """What the model thought, in its own words or as a summary."""

    type: Literal["reasoning"]
    id: str | None = None
    summary: Annotated[list[SummaryText], FirstOnly()] | None = None
    content: Annotated[list[ReasoningText], FirstOnly()] | None = None
    encrypted_content: None = None
    status: ItemStatus | None = None

    @property
    def text(self) -> str:
        """All of it."""
        parts: Sequence[ReasoningText | SummaryText] = self.content or self.summary or ()
        return "\n".join(part.text for part in parts)


InputItem = Annotated[
    Annotated[MessageItem, Tag("message")]
    | Annotated[FunctionCallItem, Tag("function_call")]
    | Annotated[FunctionOutputItem, Tag("function_call_output")]
    | Annotated[ReasoningItem, Tag("reasoning")],
    by_type(default="message"),
    known_type(_ITEM_TYPES, default="message", hint=": nothing is kept here, and the model calls functions alone"),
]
InputItems = Annotated[list[InputItem], FirstOnly(), Field(min_length=1)]


@dataclass(kw_only=True)
class _Said:
    """What the assistant has said in one go, which is one message to a template."""

    reasoning: str = ""
    content: str | None = None
    calls: list[dict[str, Any]] = field(default_factory=list)

    def takes(self, item: MessageItem | FunctionCallItem | ReasoningItem) -> bool:
        """Whether an item is of the same message: its parts come in the order of reasoning, text, calls."""
        match item:
            case ReasoningItem():
                return self.content is None and not self.calls
            case MessageItem():
                return self.content is None and not self.calls
        return True

    def message(self) -> Message:
        extra: dict[str, Any] = {}
        if self.reasoning:
            extra |= {"reasoning": self.reasoning, "reasoning_content": self.reasoning}
        if self.calls:
            extra["tool_calls"] = self.calls
        return Message(role="assistant", content=self.content, **extra)


def to_messages(instructions: str | None, given: str | Sequence[Any]) -> tuple[Message, ...]:
    """The messages of a conversation, for a chat template.

    Instructions and the messages of system and developer at the beginning become one: most templates take no second.

    Raises:
        ApiError: there is the output of a call that was not made.
    """
    rest = [MessageItem(role="user", content=given)] if isinstance(given, str) else list(given)
    rules = [instructions] if instructions else []
    while rest and isinstance(rest[0], MessageItem) and rest[0].role in ("system", "developer"):
        rules.append(content_text(rest.pop(0).content))
    first = [Message(role="system", content="\n\n".join(rules))] if rules else []
    return (*first, *_messages(rest))


def content_text(content: str | Sequence[InputText | OutputText | Refusal]) -> str:
    """The parts of a content, one behind the other."""
    return content if isinstance(content, str) else "".join(part.text for part in content)


def _messages(items: Sequence[Any]) -> Iterator[Message]:
    said: _Said | None = None
    names: dict[str, str] = {}
    for item in items:
        is_of_assistant = not isinstance(item, FunctionOutputItem) and getattr(item, "role", "assistant") == "assistant"
        if said is not None and not (is_of_assistant and said.takes(item)):
            yield said.message()
            said = None
        if is_of_assistant:
            said = said or _Said()
            _add(said, item)
        if isinstance(item, FunctionCallItem):
            names[item.call_id] = item.name
        elif isinstance(item, FunctionOutputItem):
            if item.call_id not in names:
                message = "input: an output belongs to no call; each function_call must stand before its output"
                raise ApiError(400, message, "input")
            called: dict[str, Any] = {"tool_call_id": item.call_id, "name": names[item.call_id]}
            yield Message(role="tool", content=content_text(item.output), **called)
        elif isinstance(item, MessageItem) and not is_of_assistant:
            yield Message(role=item.role, content=content_text(item.content))
    if said is not None:
        yield said.message()


def _add(said: _Said, item: MessageItem | FunctionCallItem | ReasoningItem) -> None:
    match item:
        case ReasoningItem():
            said.reasoning = "\n".join(filter(None, (said.reasoning, item.text)))
        case MessageItem():
            said.content = content_text(item.content)
        case FunctionCallItem():
            function = {"name": item.name, "arguments": item.arguments}
            said.calls.append({"id": item.call_id, "type": "function", "function": function})
