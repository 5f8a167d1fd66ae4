"""``/v1/responses``."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import Field, Tag

from rlserve.engine.requests.structured_output import StructuredOutput
from rlserve.serving.config import LimitsConfig
from rlserve.serving.protocol.conversation import Conversation, check_template_arguments
from rlserve.serving.protocol.errors import ApiError
from rlserve.serving.protocol.kinds import TEXT_OR_LIST, by_type, known_type
from rlserve.serving.protocol.response_items import InputItems, to_messages
from rlserve.serving.protocol.sampling import (
    ApiModel,
    EngineFields,
    FirstOnly,
    OnlyFalse,
    SamplingFields,
    check_num_logprobs,
)
from rlserve.serving.protocol.thinking import effort_arguments
from rlserve.serving.protocol.tools import FUNCTION_NAME, MAX_TOOLS, FunctionSpec, ToolSpec
from rlserve.serving.tool_parsers.choice import AUTO, NONE, REQUIRED

_LOG_PROBS = "message.output_text.logprobs"


class FunctionTool(ApiModel):
    """A function that the model may call."""

    type: Literal["function"]
    name: Annotated[str, Field(pattern=FUNCTION_NAME)]
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class FunctionChoice(ApiModel):
    """The function that is to be called."""

    type: Literal["function"]
    name: str


class AllowedTools(ApiModel):
    """Those of the tools that may be called."""

    type: Literal["allowed_tools"]
    mode: Literal["auto", "required"]
    tools: Annotated[list[FunctionChoice], FirstOnly(), Field(min_length=1)]


class TextFormat(ApiModel):
    """Any text, or any JSON."""

    type: Literal["text", "json_object"]


class SchemaFormat(ApiModel):
    """JSON by a schema."""

    type: Literal["json_schema"]
    name: str
    schema_: Annotated[dict[str, Any], Field(alias="schema")]
    description: str | None = None
    strict: bool | None = None


class TextOptions(ApiModel):
    """What the answer's text is to be like."""

    format: (
        Annotated[
            Annotated[TextFormat, Tag("text")]
            | Annotated[TextFormat, Tag("json_object")]
            | Annotated[SchemaFormat, Tag("json_schema")],
            by_type(),
            known_type(("text", "json_object", "json_schema")),
        ]
        | None
    ) = None
    verbosity: Literal["medium"] | None = None
    """The only one that changes nothing."""

    @property
    def form(self) -> StructuredOutput | None:
        """None where any text will do."""
        match self.format:
            case SchemaFormat():
                return StructuredOutput(kind="json_schema", text=json.dumps(self.format.schema_))
            case TextFormat(type="json_object"):
                return StructuredOutput(kind="json_object")
        return None


class ReasoningOptions(ApiModel):
    """How much the model is to think. There are no summaries: what it thinks is told as it is."""

    effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = None
    summary: Literal["auto"] | None = None


class ResponseStreamOptions(ApiModel):
    """For which only the value that changes nothing is taken."""

    include_obfuscation: OnlyFalse | None = None


class ResponsesRequest(EngineFields):
    """A conversation, as text or as items."""

    input: Annotated[Annotated[str, Tag("text")] | Annotated[InputItems, Tag("list")], TEXT_OR_LIST]
    instructions: str | None = None
    max_output_tokens: Annotated[int, Field(ge=1)] | None = None
    tools: (
        Annotated[
            list[Annotated[FunctionTool, known_type(("function",), hint=": this server runs no tools of its own")]],
            FirstOnly(),
            Field(max_length=MAX_TOOLS),
        ]
        | None
    ) = None
    tool_choice: Literal["auto", "none", "required"] | FunctionChoice | AllowedTools | None = None
    parallel_tool_calls: bool | None = None
    max_tool_calls: Annotated[int, Field(ge=1)] | None = None
    """Of tools that a server runs itself, and there are none."""
    text: TextOptions | None = None
    reasoning: ReasoningOptions | None = None
    include: (
        Annotated[list[Literal["message.output_text.logprobs", "reasoning.encrypted_content"]], FirstOnly()] | None
    ) = None
    """Reasoning is told as it is, so there is nothing to encrypt."""
    top_logprobs: int | None = None
    stream_options: ResponseStreamOptions | None = None
    prompt_cache_key: str | None = None
    """Requests with the same go to the same replica with ``routing.policy=consistent_hash``."""
    safety_identifier: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    # What is kept nowhere, and so for which only the value that changes nothing is taken.
    truncation: Literal["disabled"] | None = None
    background: OnlyFalse | None = None
    store: bool | None = None
    """Clients leave it out, which is true with OpenAI; the answer says false."""
    previous_response_id: None = None
    conversation: None = None
    prompt: None = None

    @property
    def num_logprobs(self) -> int | None:
        """Likeliest tokens to tell for each token; None tells no log-probabilities."""
        wants = self.top_logprobs is not None or _LOG_PROBS in (self.include or ())
        return (self.top_logprobs or 0) if wants else None

    @property
    def wanted_calls(self) -> str:
        """``auto``, ``none``, ``required``, or the name of the tool that is to be called."""
        match self.tool_choice:
            case None:
                return AUTO if self.tools else NONE
            case FunctionChoice():
                return self.tool_choice.name
            case AllowedTools():
                return self.tool_choice.mode
        return self.tool_choice

    @property
    def callable_tools(self) -> tuple[ToolSpec, ...]:
        """Those that may be called, as chats have them."""
        choice = self.tool_choice
        names = {each.name for each in choice.tools} if isinstance(choice, AllowedTools) else None
        return tuple(_tool_spec(tool) for tool in self.tools or () if names is None or tool.name in names)

    def check(self, limits: LimitsConfig) -> None:
        """What can be said before anything is computed.

        Raises:
            ApiError: a limit is passed, or something is asked for that cannot be had.
        """
        self.sampling().check(limits)
        check_num_logprobs("top_logprobs", self.top_logprobs, limits)
        if self.stream_options is not None and not self.stream:
            raise ApiError(400, "stream_options are only for stream=true", "stream_options")
        check_template_arguments(self.chat_template_kwargs)
        if self.wanted_calls in (NONE, AUTO) and not isinstance(self.tool_choice, FunctionChoice | AllowedTools):
            return
        names = {tool.name for tool in self.tools or ()}
        match self.tool_choice:
            case FunctionChoice():
                chosen = {self.tool_choice.name}
            case AllowedTools():
                chosen = {each.name for each in self.tool_choice.tools}
            case _:
                chosen = set()
        if not names or not chosen <= names - {NONE, AUTO, REQUIRED}:
            raise ApiError(400, "tool_choice must name functions that are among the tools", "tool_choice")

    def sampling(self) -> SamplingFields:
        """How to generate."""
        return SamplingFields(**{name: getattr(self, name) for name in EngineFields.model_fields})

    def conversation_of(self, template: str) -> Conversation:
        """What it comes to.

        Args:
            template: the text of the model's chat template.

        Raises:
            ApiError: something is asked for that the template cannot say.
        """
        effort = None if self.reasoning is None else self.reasoning.effort
        return Conversation(
            messages=to_messages(self.instructions, self.input),
            sampling=self.sampling(),
            max_tokens=self.max_output_tokens,
            num_logprobs=self.num_logprobs,
            tools=self.callable_tools,
            wanted_calls=self.wanted_calls,
            may_call_several=self.parallel_tool_calls is not False,
            form=None if self.text is None else self.text.form,
            template_arguments={
                **effort_arguments(effort, template, "reasoning"),
                **(self.chat_template_kwargs or {}),
            },
            session=self.prompt_cache_key or self.user,
            messages_name="input",
            max_tokens_name="max_output_tokens",
        )


def _tool_spec(tool: FunctionTool) -> ToolSpec:
    function = FunctionSpec(name=tool.name, description=tool.description, parameters=tool.parameters)
    return ToolSpec(type="function", function=function)
