"""Tools, forms and reasoning of a conversation's answers."""

from __future__ import annotations

from collections.abc import Sequence

from rlserve.engine.requests import request as engine
from rlserve.engine.requests.structured_output import StructuredOutput
from rlserve.engine.requests.thinking_budget import ThinkingBudget
from rlserve.errors import UserError
from rlserve.serving.answers.message import MessageReader
from rlserve.serving.front.context import ServerContext
from rlserve.serving.protocol.conversation import Conversation
from rlserve.serving.protocol.errors import ApiError
from rlserve.serving.reasoning.factory import create_reasoning_parser, find_reasoning_format, reasoning_tags
from rlserve.serving.tool_parsers.base import ToolFormat, new_call_id
from rlserve.serving.tool_parsers.choice import AUTO, forced_calls
from rlserve.serving.tool_parsers.factory import find_tool_format

_NUM_LAST_TOKENS = 16
"""Of a prompt: enough for an opening tag."""


def wanted_form(context: ServerContext, conversation: Conversation) -> StructuredOutput | None:
    """What answers must look like: calls that are forced, or else a form that is asked for.

    Raises:
        ApiError: a form is asked for and calls are free, or the model's way to call tools is not known.
    """
    if not conversation.shown_tools:
        return conversation.form
    if conversation.form is not None and conversation.wanted_calls == AUTO:
        raise ApiError(400, "an answer of a given form cannot call tools: set tool_choice=none", "tool_choice")
    tools = [spec.tool for spec in conversation.shown_tools]
    try:
        return forced_calls(
            _tool_format(context),
            tools,
            conversation.wanted_calls,
            several=conversation.may_call_several,
            tag_tokens=context.vocabulary.tag_tokens,
        )
    except UserError as error:
        raise ApiError(400, str(error), "tool_choice") from error


def message_reader(context: ServerContext, conversation: Conversation, request: engine.Request) -> MessageReader:
    """For one answer to a conversation. An answer of a given form has no reasoning."""
    has_form = request.sampling.structured_output is not None
    name = None if has_form else reasoning_format(context)
    return MessageReader(
        None if name is None else create_reasoning_parser(name, _end_of(context, request.prompt_token_ids)),
        _tool_format(context).parser(new_call_id) if conversation.shown_tools else None,
    )


def thinking_budget(
    context: ServerContext, conversation: Conversation, prompt_token_ids: Sequence[int]
) -> ThinkingBudget | None:
    """How long answers may think; None where nothing says so, and where they do not think: of a given form.

    Raises:
        ApiError: it must be held to, and cannot.
    """
    if conversation.thinking_budget is None:
        return None
    name = reasoning_format(context)
    tags = () if name is None else reasoning_tags(name)
    if not tags or not context.vocabulary.tag_tokens.issuperset(tags):
        if (param := conversation.thinking_budget_name) is None:
            return None
        what = "no reasoning of this model is known (model.reasoning_parser)"
        if tags:
            what = f"{' and '.join(tags)} are no tokens of their own in this model's vocabulary"
        raise ApiError(400, f"{param}: {what}", param)
    opening, closing = tags
    return ThinkingBudget(
        num_tokens=conversation.thinking_budget,
        opening_token_id=context.vocabulary.encode(opening, add_special_tokens=False)[0],
        closing_token_id=context.vocabulary.encode(closing, add_special_tokens=False)[0],
        begins_inside=_end_of(context, prompt_token_ids).rstrip().endswith(opening),
    )


def reasoning_format(context: ServerContext) -> str | None:
    """The name of the format that the model thinks in; None where it does not, or none is known."""
    return find_reasoning_format(context.config.model.reasoning_parser, context.renderer.template)


def _end_of(context: ServerContext, prompt_token_ids: Sequence[int]) -> str:
    return context.vocabulary.decode(prompt_token_ids[-_NUM_LAST_TOKENS:], skip_special_tokens=False)


def _tool_format(context: ServerContext) -> ToolFormat:
    found = find_tool_format(context.config.model.tool_parser, context.renderer.template)
    if found is None:
        message = "tools: the chat template does not show how the model calls them; set model.tool_parser"
        raise ApiError(400, message, "tools")
    return found
