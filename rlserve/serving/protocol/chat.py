"""``/v1/chat/completions``, and several conversations at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Field

from rlserve.serving.config import LimitsConfig
from rlserve.serving.protocol.beam_search import check_beam_search
from rlserve.serving.protocol.conversation import Conversation, check_template_arguments
from rlserve.serving.protocol.errors import ApiError
from rlserve.serving.protocol.message import Message
from rlserve.serving.protocol.sampling import FirstOnly, OnlyFalse, OnlyOne, SamplingFields, check_num_logprobs
from rlserve.serving.protocol.structured import structured_output_of
from rlserve.serving.protocol.tools import MAX_TOOLS, NamedTool, ToolChoice, ToolSpec
from rlserve.serving.tool_parsers.choice import AUTO, NONE, REQUIRED

Messages = Annotated[list[Message], FirstOnly(), Field(min_length=1)]


class ChatFields(SamplingFields):
    """What is asked of the answers to a conversation that calls no tools."""

    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    add_special_tokens: bool | None = None
    echo: bool | None = None
    """The last message stands before an answer that continues it."""
    include_reasoning: bool | None = None
    thinking_token_budget: Annotated[int, Field(ge=0, lt=2**31)] | None = None
    """Most tokens of an answer's reasoning, which is then closed."""
    prompt_cache_key: str | None = None
    """Requests with the same go to the same replica with ``routing.policy=consistent_hash``."""
    safety_identifier: str | None = None
    reasoning_effort: Any = None

    @property
    def num_logprobs(self) -> int | None:
        """Likeliest tokens to tell for each token; None tells no log-probabilities."""
        return (self.top_logprobs or 0) if self.logprobs else None

    @property
    def goes_on(self) -> bool:
        """Whether the answer continues the last message."""
        return self.continue_final_message is True

    def check(self, limits: LimitsConfig) -> None:
        super().check(limits)
        check_num_logprobs("top_logprobs", self.top_logprobs, limits, or_all=True)
        self.check_named_tokens(self.num_logprobs, limits)
        if self.max_completion_tokens is not None and self.max_completion_tokens < 1:
            raise ApiError(400, "max_completion_tokens must be at least 1", "max_completion_tokens")
        if self.top_logprobs is not None and not self.logprobs:
            raise ApiError(400, "top_logprobs needs logprobs=true", "top_logprobs")
        if self.goes_on and self.add_generation_prompt:
            raise ApiError(400, "continue_final_message needs add_generation_prompt=false", "continue_final_message")
        if self.reasoning_effort is not None:
            raise ApiError(
                400, "reasoning_effort: name it in chat_template_kwargs where the template reads it", "reasoning_effort"
            )
        check_template_arguments(self.chat_template_kwargs)


class ChatRequest(ChatFields):
    """A conversation."""

    messages: Messages
    tools: Annotated[list[ToolSpec], FirstOnly(), Field(max_length=MAX_TOOLS)] | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None

    @property
    def wanted_calls(self) -> str:
        """``auto``, ``none``, ``required``, or the name of the tool that is to be called."""
        if self.tool_choice is None:
            return AUTO if self.tools else NONE
        return self.tool_choice.function.name if isinstance(self.tool_choice, NamedTool) else self.tool_choice

    @property
    def echoed(self) -> str:
        """What stands before each answer."""
        last = self.messages[-1]
        return last.text if self.echo and last.role == "assistant" else ""

    def check(self, limits: LimitsConfig) -> None:
        super().check(limits)
        check_beam_search(self)
        if self.use_beam_search and self.wanted_calls != NONE:
            message = "tools: the answers of a beam search call none: leave out either, or set tool_choice to none"
            raise ApiError(400, message, "tools")
        if self.use_beam_search and self.thinking_token_budget is not None:
            message = "thinking_token_budget is not held to in a beam search: leave out either"
            raise ApiError(400, message, "thinking_token_budget")
        if not self.tools and self.wanted_calls not in (NONE, AUTO):
            raise ApiError(400, "tool_choice needs tools", "tool_choice")
        if isinstance(self.tool_choice, NamedTool) and self.wanted_calls not in {
            spec.function.name for spec in self.tools or ()
        } - {NONE, AUTO, REQUIRED}:
            raise ApiError(400, "tool_choice must name one of the tools, or be auto, none or required", "tool_choice")

    def conversation(self) -> Conversation:
        """What it comes to.

        Raises:
            ApiError: the form that answers are to have is none.
        """
        has_newer_name = self.max_completion_tokens is not None
        return Conversation(
            messages=tuple(self.messages),
            sampling=self,
            max_tokens=self.max_completion_tokens if has_newer_name else self.max_tokens,
            num_logprobs=self.num_logprobs,
            tools=tuple(self.tools or ()),
            wanted_calls=self.wanted_calls,
            may_call_several=self.parallel_tool_calls is not False,
            form=structured_output_of(self),
            template_arguments=self.chat_template_kwargs or {},
            goes_on=self.goes_on,
            opens_answer=self.add_generation_prompt is not False,
            adds_special_tokens=self.add_special_tokens is True,
            tells_reasoning=self.include_reasoning is not False,
            thinking_budget=self.thinking_token_budget,
            thinking_budget_name="thinking_token_budget",
            session=self.prompt_cache_key or self.user,
            max_tokens_name="max_completion_tokens" if has_newer_name else "max_tokens",
        )


class BatchChatRequest(ChatFields):
    """Several conversations, with an answer to each."""

    messages: Annotated[list[Messages], FirstOnly(), Field(min_length=1)]
    n: OnlyOne | None = None
    stream: OnlyFalse | None = None
    use_beam_search: OnlyFalse | None = None
    tool_choice: Literal["none"] | None = None

    @property
    def each(self) -> Sequence[ChatRequest]:
        """The conversations by themselves."""
        shared = {name: getattr(self, name) for name in ChatFields.model_fields}
        return [ChatRequest.model_construct(**{**shared, "messages": messages}) for messages in self.messages]

    def check(self, limits: LimitsConfig) -> None:
        super().check(limits)
        if len(self.messages) > limits.max_prompts:
            raise ApiError(
                400,
                f"at most {limits.max_prompts} conversations can be given, got {len(self.messages)}",
                "messages",
            )
        if self.prompt_logprobs is not None:
            raise ApiError(400, "prompt_logprobs: ask for one conversation at a time", "prompt_logprobs")
