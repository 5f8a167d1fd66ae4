"""From what a client sends to the tokens that the model reads."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from rlserve.errors import DeadlineExceededError, UserError
from rlserve.serving.front.context import ServerContext
from rlserve.serving.front.masks import check_num_chars
from rlserve.serving.protocol.conversation import Conversation
from rlserve.serving.protocol.errors import ApiError

_MANY_CHARS = 4096
"""A text longer than this is tokenised in another thread: others' streams go on meanwhile."""
_TOKENISERS = ThreadPoolExecutor(2, thread_name_prefix="tokenise")
"""Few: each keeps as much memory as its longest text took."""
_NUM_AFFINITY_TOKENS = 64


async def encode(context: ServerContext, text: str, *, add_special_tokens: bool) -> tuple[int, ...]:
    """The tokens of a text."""
    vocabulary = context.vocabulary
    if len(text) < _MANY_CHARS:
        return vocabulary.encode(text, add_special_tokens=add_special_tokens)
    work = partial(vocabulary.encode, text, add_special_tokens=add_special_tokens)
    return await asyncio.get_running_loop().run_in_executor(_TOKENISERS, work)


async def encode_conversation(context: ServerContext, conversation: Conversation) -> tuple[int, ...]:
    """The tokens of a conversation.

    Raises:
        ApiError: the chat template refuses it, or takes too long.
    """
    return await encode_rendered(context, conversation, await render_conversation(context, conversation))


async def render_conversation(context: ServerContext, conversation: Conversation) -> str:
    """What the chat template makes of a conversation.

    Raises:
        ApiError: the template refuses it, or takes too long.
    """
    check_num_chars(context, (message.text for message in conversation.messages), conversation.messages_name)
    messages = [message.for_template() for message in conversation.messages]
    arguments = dict(conversation.template_arguments)
    if tools := conversation.shown_tools:
        arguments["tools"] = [tool.for_template() for tool in tools]
    try:
        return await context.renderer.render(
            messages, arguments, goes_on=conversation.goes_on, opens_answer=conversation.opens_answer
        )
    except (UserError, DeadlineExceededError) as error:
        raise ApiError(400, str(error), conversation.messages_name) from error


async def encode_rendered(context: ServerContext, conversation: Conversation, text: str) -> tuple[int, ...]:
    """The tokens of what the chat template has written: all that the model reads, special tokens included, unless the
    client wants more."""
    text = await context.readable(text)
    return await encode(context, text, add_special_tokens=conversation.adds_special_tokens)


def affinity_of_tokens(token_ids: Sequence[int], session: str | None) -> str:
    """What requests that share a cached prompt have in common: their session, or their beginning."""
    return session or repr(token_ids[:_NUM_AFFINITY_TOKENS])


def affinity_of_conversation(conversation: Conversation) -> str:
    """The same of conversations: up to the first words of the user they stay as they are, turn after turn."""
    if conversation.session:
        return conversation.session
    digest = hashlib.blake2b(digest_size=16)
    for message in conversation.messages:
        digest.update(f"{message.role}\0{message.text}\0".encode("utf-8", "surrogatepass"))
        if message.role == "user":
            break
    return digest.hexdigest()


def max_tokens_of(
    context: ServerContext,
    asked: int | None,
    default: int | None,
    num_prompt_tokens: int,
    *,
    name: str = "max_tokens",
    prompt: str = "prompt",
) -> int:
    """Most tokens of an answer: what is asked for, or ``default``, or what the model has room for.

    Args:
        name: by which it was asked for.
        prompt: the parameter that the prompt came in.

    Raises:
        ApiError: the prompt is too long, or leaves no room for what is asked for.
    """
    longest = context.pool.limits.max_model_len
    room = longest - num_prompt_tokens
    if room < 1:
        message = f"the prompt has {num_prompt_tokens} tokens, and prompt plus answer may have {longest}"
        raise ApiError(400, message, prompt)
    if asked is None:
        return room if default is None else min(default, room)
    if asked > room:
        message = (
            f"{name}={asked} and the {num_prompt_tokens} tokens of the prompt are more than the {longest} that "
            f"fit: ask for {room} at most"
        )
        raise ApiError(400, message, name)
    return asked
