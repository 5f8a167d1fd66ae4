"""What answers look like, for the OpenAPI document. Answers are built as plain dicts, which is several times cheaper;
tests hold what a server sends to these schemas."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict


class AnswerModel(BaseModel):
    """Of all answers: they have these fields and no others."""

    model_config = ConfigDict(extra="forbid")


class ErrorDetail(AnswerModel):
    """What went wrong."""

    message: str
    type: str
    param: str | None
    """The part of the request that is wrong, if one is."""
    code: int
    """The HTTP status."""


class ErrorAnswer(AnswerModel):
    """An error as OpenAI's clients know it."""

    error: ErrorDetail


class TgiErrorAnswer(AnswerModel):
    """An error as TGI's clients know it."""

    error: str
    error_type: str


class PromptTokensDetails(AnswerModel):
    """Of the tokens of a prompt."""

    cached_tokens: int


class CompletionTokensDetails(AnswerModel):
    """Of the tokens of messages."""

    reasoning_tokens: int


class Usage(AnswerModel):
    """How many tokens a request took."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails
    completion_tokens_details: CompletionTokensDetails | None = None


class PromptToken(AnswerModel):
    """One of the tokens at a position of the prompt."""

    logprob: float
    rank: int | None
    decoded_token: str


PromptLogProbs = list[dict[str, PromptToken] | None]


class CompletionColumns(AnswerModel):
    """Log-probabilities of a completion, column by column."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class CompletionChoiceAnswer(AnswerModel):
    """One completion."""

    index: int
    text: str
    logprobs: CompletionColumns | None
    finish_reason: str | None
    stop_reason: int | str | None
    token_ids: list[int] | None
    prompt_token_ids: list[int] | None
    prompt_logprobs: PromptLogProbs | None
    weight_versions: list[list[int]] = []


class CompletionAnswer(AnswerModel):
    """Completions of one or several prompts."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[CompletionChoiceAnswer]
    usage: Usage


class LikelyToken(AnswerModel):
    """A token and its log-probability."""

    token: str
    logprob: float
    bytes: list[int]


class GeneratedToken(LikelyToken):
    """The same of one that was generated."""

    top_logprobs: list[LikelyToken]


class ChatLogProbs(AnswerModel):
    """Log-probabilities of a message."""

    content: list[GeneratedToken]
    refusal: None


class CalledFunction(AnswerModel):
    """A function and its arguments, as JSON."""

    name: str
    arguments: str


class ToolCall(AnswerModel):
    """A call of a tool."""

    id: str
    type: Literal["function"]
    function: CalledFunction


class AssistantMessage(AnswerModel):
    """What the model says."""

    role: Literal["assistant"]
    content: str | None
    refusal: None
    reasoning: str = ""
    tool_calls: list[ToolCall] = []


class ChatChoiceAnswer(AnswerModel):
    """One message."""

    index: int
    message: AssistantMessage
    logprobs: ChatLogProbs | None
    finish_reason: str | None
    stop_reason: int | str | None
    token_ids: list[int] | None
    weight_versions: list[list[int]] = []


class ChatAnswer(AnswerModel):
    """How a conversation goes on."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoiceAnswer]
    usage: Usage
    prompt_token_ids: list[int] | None
    prompt_logprobs: PromptLogProbs | None


class OutputContent(AnswerModel):
    """A text of the answer, or of what the model thought."""

    type: Literal["output_text", "reasoning_text"]
    text: str
    annotations: list[dict[str, Any]] = []
    logprobs: list[GeneratedToken] = []


class OutputItem(AnswerModel):
    """A message, a call of a function, or what the model thought."""

    type: Literal["message", "function_call", "reasoning"]
    id: str
    status: Literal["in_progress", "completed", "incomplete"]
    role: Literal["assistant"] = "assistant"
    content: list[OutputContent] = []
    summary: list[dict[str, Any]] = []
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

    reason: Literal["max_output_tokens"]


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


class ContentBlock(AnswerModel):
    """Text, a call of a tool, or what the model thought."""

    type: Literal["text", "tool_use", "thinking"]
    text: str = ""
    thinking: str = ""
    signature: str = ""
    id: str = ""
    name: str = ""
    input: dict[str, Any] = {}


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
    stop_reason: Literal["end_turn", "max_tokens", "stop_sequence", "tool_use", "model_context_window_exceeded"]
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


class ModelCard(AnswerModel):
    """A model that is served."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    root: str
    parent: str | None
    max_model_len: int


class ModelList(AnswerModel):
    """All models that are served."""

    object: Literal["list"]
    data: list[ModelCard]


class TokenizeAnswer(AnswerModel):
    """Tokens of a text."""

    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None


class DetokenizeAnswer(AnswerModel):
    """The text of tokens."""

    prompt: str


class TokenizerInfo(BaseModel):
    """What the tokenizer was made with."""

    model_config = ConfigDict(extra="allow")

    tokenizer_class: str
    chat_template: str | None


class LoadAnswer(AnswerModel):
    """How much the server has to do."""

    server_load: int
    """Answers that are generated or wait for it."""


class VersionAnswer(AnswerModel):
    """Of rlserve."""

    version: str


class TgiToken(AnswerModel):
    """A generated token."""

    id: int
    text: str
    logprob: float
    special: bool


class TgiPrefillToken(AnswerModel):
    """A token of the prompt."""

    id: int
    text: str
    logprob: float | None


class TgiDetails(AnswerModel):
    """How an answer ended, and its tokens."""

    finish_reason: Literal["length", "eos_token", "stop_sequence"]
    generated_tokens: int
    seed: int | None
    prefill: list[TgiPrefillToken]
    tokens: list[TgiToken]
    top_tokens: list[list[TgiToken]] = []


class TgiAnswerContent(AnswerModel):
    """A whole answer of ``/generate``."""

    generated_text: str
    details: TgiDetails | None = None


class TgiInfo(BaseModel):
    """What the server is."""

    model_config = ConfigDict(extra="allow", protected_namespaces=())

    model_id: str
    max_input_tokens: int
    max_total_tokens: int
    version: str
