"""A conversation that is to go on, whatever API it was written in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from rlserve.engine.requests.structured_output import StructuredOutput
from rlserve.serving.protocol.errors import ApiError
from rlserve.serving.protocol.message import Message
from rlserve.serving.protocol.sampling import SamplingFields
from rlserve.serving.protocol.tools import ToolSpec
from rlserve.serving.tool_parsers.choice import NONE

_OWN_ARGUMENTS = frozenset(
    {"conversation", "messages", "chat_template", "tokenize", "add_generation_prompt", "continue_final_message"}
    | {"return_dict", "return_tensors", "padding", "truncation", "max_length", "tools", "documents"}
    | {"return_assistant_tokens_mask", "tokenizer_kwargs"}
)


@dataclass(frozen=True, kw_only=True)
class Conversation:
    """What the model is told and how it is to answer. Each API reads its own requests into one."""

    messages: tuple[Message, ...]
    sampling: SamplingFields = field(default_factory=SamplingFields)
    """Without ``max_tokens``, which the next has."""
    max_tokens: int | None = None
    """Of an answer; None: as many as there is room for."""
    cuts_max_tokens: bool = False
    """Whether more than there is room for is cut to that, and not refused."""
    num_logprobs: int | None = None
    """Likeliest tokens to tell for each token; None tells no log-probabilities."""
    tools: tuple[ToolSpec, ...] = ()
    wanted_calls: str = NONE
    """``auto``, ``none``, ``required``, or the name of the tool that is to be called."""
    may_call_several: bool = True
    form: StructuredOutput | None = None
    """That answers must have."""
    template_arguments: Mapping[str, Any] = field(default_factory=dict)
    goes_on: bool = False
    """Whether the answer continues the last message."""
    opens_answer: bool = True
    """Whether the template writes the beginning of the answer's message, where it does not go on."""
    adds_special_tokens: bool = False
    """Whether the tokenizer adds those that it puts around text, beside what the template writes."""
    tells_reasoning: bool = True
    thinking_budget: int | None = None
    """Most tokens of an answer's reasoning; None: as many as it likes."""
    thinking_budget_name: str | None = None
    """The parameter that it came in; None: it is held to where it can be."""
    session: str | None = None
    """Requests with the same go to the same replica with ``routing.policy=consistent_hash``."""
    messages_name: str = "messages"
    """The parameter that the messages came in."""
    max_tokens_name: str = "max_tokens"

    @property
    def shown_tools(self) -> tuple[ToolSpec, ...]:
        """Those that the model is shown."""
        return () if self.wanted_calls == NONE else self.tools


def check_template_arguments(arguments: Mapping[str, Any] | None) -> None:
    """Raise ``ApiError`` where ``chat_template_kwargs`` hold what is not for clients to give."""
    if own := _OWN_ARGUMENTS & set(arguments or ()):
        raise ApiError(400, f"chat_template_kwargs cannot hold {', '.join(sorted(own))}", "chat_template_kwargs")
