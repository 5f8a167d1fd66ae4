"""What answers look like, for the OpenAPI document. Answers are built as plain dicts, which is several times cheaper;
tests hold what a server sends to these schemas."""

from __future__ import annotations

from typing import Literal

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
    code: int | Literal["content_filter"]
    """The HTTP status, or that the prompt was refused for its text."""


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


class Timings(AnswerModel):
    """How long an answer waited and took, where the server tells it."""

    time_to_first_token_ms: float = 0.0
    """From when it was scheduled."""
    generation_time_ms: float = 0.0
    """From its first token to its last."""
    queue_time_ms: float = 0.0
    """Until it was scheduled."""
    mean_itl_ms: float = 0.0
    """Between two tokens of one answer."""
    tokens_per_second: float = 0.0
    """From when it was scheduled."""


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


EndReason = Literal["stop", "length", "tool_calls", "content_filter", "abort", "error"]


class CompletionChoiceAnswer(AnswerModel):
    """One completion."""

    index: int
    text: str
    logprobs: CompletionColumns | None
    finish_reason: EndReason | None
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
    metrics: Timings = Timings()


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
    finish_reason: EndReason | None
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
    metrics: Timings = Timings()
    prompt_token_ids: list[int] | None
    prompt_logprobs: PromptLogProbs | None


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
