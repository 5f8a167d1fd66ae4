"""``/v1/messages`` and ``/v1/messages/count_tokens``, as Anthropic's clients speak."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, Tag

from rlserve.engine.requests.structured_output import StructuredOutput
from rlserve.engine.requests.validation import MAX_SALT_CHARS
from rlserve.serving.config import LimitsConfig
from rlserve.serving.protocol.conversation import Conversation, check_template_arguments
from rlserve.serving.protocol.errors import ApiError
from rlserve.serving.protocol.kinds import by_type, known_type
from rlserve.serving.protocol.message_blocks import CacheControl, InputMessages, TextBlocks, text_of, to_messages
from rlserve.serving.protocol.sampling import ApiModel, FirstOnly, OnlyFalse, SamplingFields, Texts
from rlserve.serving.protocol.thinking import effort_arguments, switch_arguments
from rlserve.serving.protocol.tools import FUNCTION_NAME, MAX_TOOLS, FunctionSpec, ToolSpec
from rlserve.serving.tool_parsers.choice import AUTO, NONE, REQUIRED

_MIN_THINKING_TOKENS = 1024
_ERROR_TYPES: Mapping[int, str] = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}


class UserTool(ApiModel):
    """A tool that the client runs."""

    type: Literal["custom"] | None = None
    name: Annotated[str, Field(pattern=FUNCTION_NAME)]
    description: str | None = None
    input_schema: dict[str, Any]
    cache_control: CacheControl | None = None
    strict: bool | None = None
    eager_input_streaming: bool | None = None
    """Arguments are always streamed as they come."""
    defer_loading: OnlyFalse | None = None


class ToolChoiceOptions(ApiModel):
    """Whether tools are called, and which."""

    type: Literal["auto", "any", "none"]
    disable_parallel_tool_use: bool | None = None


class NamedToolChoice(ApiModel):
    """The tool that is to be called."""

    type: Literal["tool"]
    name: str
    disable_parallel_tool_use: bool | None = None


class ThinkingOptions(ApiModel):
    """Whether the model thinks before it answers, and for how long: see ``Conversation.thinking_budget``."""

    type: Literal["enabled", "disabled", "adaptive"]
    budget_tokens: Annotated[int, Field(ge=_MIN_THINKING_TOKENS)] | None = None
    display: Literal["summarized"] | None = None


class JsonFormat(ApiModel):
    """JSON by a schema."""

    type: Literal["json_schema"]
    schema_: Annotated[dict[str, Any], Field(alias="schema")]


class OutputConfig(ApiModel):
    """What the answer is to be like."""

    effort: Literal["low", "medium", "high", "xhigh", "max"] | None = None
    format: JsonFormat | None = None


class MessageMetadata(ApiModel):
    """Requests of one user go to the same replica with ``routing.policy=consistent_hash``."""

    user_id: str | None = None


class CountTokensRequest(ApiModel):
    """A conversation."""

    model: str
    messages: InputMessages
    system: TextBlocks | None = None
    tools: (
        Annotated[
            list[
                Annotated[
                    UserTool,
                    known_type(("custom",), default="custom", hint=": this server runs no tools of its own"),
                ]
            ],
            FirstOnly(),
            Field(max_length=MAX_TOOLS),
        ]
        | None
    ) = None
    tool_choice: (
        Annotated[
            Annotated[ToolChoiceOptions, Tag("auto")]
            | Annotated[ToolChoiceOptions, Tag("any")]
            | Annotated[ToolChoiceOptions, Tag("none")]
            | Annotated[NamedToolChoice, Tag("tool")],
            by_type(),
            known_type(("auto", "any", "none", "tool")),
        ]
        | None
    ) = None
    thinking: ThinkingOptions | None = None
    output_config: OutputConfig | None = None
    cache_control: CacheControl | None = None
    chat_template_kwargs: dict[str, Any] | None = None

    @property
    def wanted_calls(self) -> str:
        """``auto``, ``none``, ``required``, or the name of the tool that is to be called."""
        match self.tool_choice:
            case None:
                return AUTO if self.tools else NONE
            case NamedToolChoice():
                return self.tool_choice.name
        return REQUIRED if self.tool_choice.type == "any" else self.tool_choice.type

    @property
    def form(self) -> StructuredOutput | None:
        """None where any text will do."""
        if self.output_config is None or self.output_config.format is None:
            return None
        return StructuredOutput(kind="json_schema", text=json.dumps(self.output_config.format.schema_))

    def check_conversation(self) -> None:
        """What can be said before anything is computed.

        Raises:
            ApiError: something is asked for that cannot be had.
        """
        check_template_arguments(self.chat_template_kwargs)
        thinking = self.thinking
        if thinking is not None and (thinking.budget_tokens is not None) != (thinking.type == "enabled"):
            raise ApiError(400, "thinking: budget_tokens is for type enabled, which must have it", "thinking")
        if self.tool_choice is None or (
            self.wanted_calls in (AUTO, NONE) and self.tool_choice.type in ("auto", "none")
        ):
            return
        names = {tool.name for tool in self.tools or ()}
        chosen = {self.wanted_calls} if isinstance(self.tool_choice, NamedToolChoice) else set[str]()
        if not names or not chosen <= names - {AUTO, NONE, REQUIRED}:
            raise ApiError(400, "tool_choice must name one of the tools, or be auto, any or none", "tool_choice")

    def conversation_of(self, template: str, *, has_reasoning: bool) -> Conversation:
        """What it comes to.

        Args:
            template: the text of the model's chat template.
            has_reasoning: whether the model's reasoning is known.

        Raises:
            ApiError: something is asked for that the template cannot say.
        """
        messages = to_messages(text_of(self.system or ""), self.messages)
        effort = None if self.output_config is None else self.output_config.effort
        arguments = effort_arguments(effort, template, "output_config")
        if self.thinking is not None:
            thinks = self.thinking.type != "disabled"
            arguments |= switch_arguments(thinks, template, "thinking", has_reasoning=has_reasoning)
        choice = self.tool_choice
        return Conversation(
            messages=messages,
            sampling=SamplingFields(model=self.model),
            tools=tuple(_tool_spec(tool) for tool in self.tools or ()),
            wanted_calls=self.wanted_calls,
            may_call_several=choice is None or not choice.disable_parallel_tool_use,
            form=self.form,
            template_arguments={**arguments, **(self.chat_template_kwargs or {})},
            goes_on=self.messages[-1].role == "assistant" and "tool_calls" not in (messages[-1].model_extra or {}),
            thinking_budget=None if self.thinking is None else self.thinking.budget_tokens,
        )


class MessagesRequest(CountTokensRequest):
    """A conversation that is to go on."""

    max_tokens: Annotated[int, Field(ge=1)]
    stop_sequences: Texts | None = None
    stream: bool | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    metadata: MessageMetadata | None = None
    service_tier: Literal["auto", "standard_only"] | None = None
    # vLLM's.
    priority: int | None = None
    cache_salt: Annotated[str, Field(min_length=1, max_length=MAX_SALT_CHARS)] | None = None

    def check(self, limits: LimitsConfig) -> None:
        """What can be said before anything is computed.

        Raises:
            ApiError: a limit is passed, or something is asked for that cannot be had.
        """
        self.check_conversation()
        self.sampling().check(limits)
        budget = None if self.thinking is None else self.thinking.budget_tokens
        if budget is not None and budget >= self.max_tokens:
            raise ApiError(400, "thinking: budget_tokens must be less than max_tokens", "thinking")

    def sampling(self) -> SamplingFields:
        """How to generate."""
        return SamplingFields(
            model=self.model,
            stop=self.stop_sequences,
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            priority=self.priority,
            cache_salt=self.cache_salt,
        )


def _tool_spec(tool: UserTool) -> ToolSpec:
    function = FunctionSpec(name=tool.name, description=tool.description, parameters=tool.input_schema)
    return ToolSpec(type="function", function=function)


def messages_error(error: ApiError, request_id: str | None) -> dict[str, Any]:
    """An error as this API's clients read it. It has no place for the name of a parameter but its message."""
    kind = _ERROR_TYPES.get(error.status, "invalid_request_error" if error.status < 500 else "api_error")
    names_it = error.param is None or error.param in error.message
    message = error.message if names_it else f"{error.param}: {error.message}"
    return {"type": "error", "error": {"type": kind, "message": message}, "request_id": request_id}
