"""What ``/v1/messages`` answers look like, for the OpenAPI document (``answer_schemas``)."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from rlserve.serving.protocol.answer_schemas import AnswerModel


class ContentBlock(AnswerModel):
    """Text, a call of a tool, or what the model thought."""

    type: Literal["text", "tool_use", "thinking"]
    text: str = ""
    thinking: str = ""
    signature: str = ""
    id: str = ""
    name: str = ""
    input: dict[str, Any] = Field(default_factory=dict)


class MessageUsage(AnswerModel):
    """How many tokens a message took; those of the input that were cached are counted by themselves."""

    input_tokens: int
    cache_creation_input_tokens: int
    cache_read_input_tokens: int
    output_tokens: int


class MessageAnswer(AnswerModel):
    """What ``/v1/messages`` answers."""

    id: str
    type: Literal["message"]
    role: Literal["assistant"]
    model: str
    content: list[ContentBlock]
    stop_reason: Literal[
        "end_turn", "max_tokens", "stop_sequence", "tool_use", "model_context_window_exceeded", "refusal"
    ]
    stop_sequence: str | None
    usage: MessageUsage


class TokenCount(AnswerModel):
    """What ``/v1/messages/count_tokens`` answers."""

    input_tokens: int


class MessagesErrorDetail(AnswerModel):
    """What went wrong."""

    type: str
    message: str


class MessagesErrorAnswer(AnswerModel):
    """An error as Anthropic's clients know it."""

    type: Literal["error"]
    error: MessagesErrorDetail
    request_id: str | None
