"""What ``/v1/responses`` answers look like, for the OpenAPI document (``answer_schemas``)."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from rlserve.serving.protocol.answer_schemas import AnswerModel, GeneratedToken


class OutputContent(AnswerModel):
    """A text of the answer, or of what the model thought."""

    type: Literal["output_text", "reasoning_text"]
    text: str
    annotations: list[dict[str, Any]] = Field(default_factory=list)
    logprobs: list[GeneratedToken] = Field(default_factory=list)


class OutputItem(AnswerModel):
    """A message, a call of a function, or what the model thought."""

    type: Literal["message", "function_call", "reasoning"]
    id: str
    status: Literal["in_progress", "completed", "incomplete"]
    role: Literal["assistant"] = "assistant"
    content: list[OutputContent] = Field(default_factory=list)
    summary: list[dict[str, Any]] = Field(default_factory=list)
    call_id: str = ""
    name: str = ""
    arguments: str = ""


class InputTokensDetails(AnswerModel):
    """Of the tokens of a conversation."""

    cached_tokens: int
    cache_write_tokens: int


class OutputTokensDetails(AnswerModel):
    """Of the tokens of an answer."""

    reasoning_tokens: int


class ResponseUsage(AnswerModel):
    """How many tokens a response took."""

    input_tokens: int
    input_tokens_details: InputTokensDetails
    output_tokens: int
    output_tokens_details: OutputTokensDetails
    total_tokens: int


class ResponseError(AnswerModel):
    """Why there is no answer."""

    code: str
    message: str


class IncompleteDetails(AnswerModel):
    """Why an answer was cut off."""

    reason: Literal["max_output_tokens", "content_filter"]


class ResponseAnswer(AnswerModel):
    """What ``/v1/responses`` answers: the items that the conversation goes on with, and what was asked for."""

    id: str
    object: Literal["response"]
    created_at: int
    completed_at: int | None
    status: Literal["completed", "incomplete", "in_progress", "failed"]
    model: str
    output: list[OutputItem]
    usage: ResponseUsage | None
    error: ResponseError | None
    incomplete_details: IncompleteDetails | None
    background: Literal[False]
    conversation: None
    instructions: str | None
    max_output_tokens: int | None
    max_tool_calls: int | None
    metadata: dict[str, str]
    parallel_tool_calls: bool
    previous_response_id: None
    prompt: None
    prompt_cache_key: str | None
    reasoning: dict[str, str | None]
    safety_identifier: str | None
    service_tier: Literal["default"]
    store: Literal[False]
    temperature: float
    text: dict[str, Any]
    tool_choice: str | dict[str, Any]
    tools: list[dict[str, Any]]
    top_logprobs: int
    top_p: float
    truncation: Literal["disabled"]
    user: str | None
