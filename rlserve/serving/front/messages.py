"""Tools, forms and reasoning of a conversation's answers."""

from __future__ import annotations

from rlserve.engine.requests import request as engine
from rlserve.engine.requests.structured_output import StructuredOutput
from rlserve.errors import UserError
from rlserve.serving.answers.message import MessageReader
from rlserve.serving.front.context import ServerContext
from rlserve.serving.protocol.conversation import Conversation
from rlserve.serving.protocol.errors import ApiError
from rlserve.serving.reasoning.factory import create_reasoning_parser, find_reasoning_format
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
    last_token_ids = request.prompt_token_ids[-_NUM_LAST_TOKENS:]
    end_of_prompt = context.vocabulary.decode(last_token_ids, skip_special_tokens=False)
    return MessageReader(
        None if name is None else create_reasoning_parser(name, end_of_prompt),
        _tool_format(context).parser(new_call_id) if conversation.shown_tools else None,
    )


def reasoning_format(context: ServerContext) -> str | None:
    """The name of the format that the model thinks in; None where it does not, or none is known."""
    return find_reasoning_format(context.config.model.reasoning_parser, context.renderer.template)


def _tool_format(context: ServerContext) -> ToolFormat:
    found = find_tool_format(context.config.model.tool_parser, context.renderer.template)
    if found is None:
        message = "tools: the chat template does not show how the model calls them; set model.tool_parser"
        raise ApiError(400, message, "tools")
    return found
