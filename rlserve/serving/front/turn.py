"""From conversations to the model's answers to them, for all APIs that have conversations.

::

    a request of some API ──► Conversation ──begin_turn──► Turn ──► TurnNews ──► an answer of that API
                                                                    reasoning, content, calls, end
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any

from rlserve.engine.requests import request as engine
from rlserve.engine.requests.request import RequestOutput
from rlserve.serving.answers.choice import ChoiceNews
from rlserve.serving.answers.message import MessageNews
from rlserve.serving.front.beam_generation import beam_generation
from rlserve.serving.front.choices import Choices, choice_options
from rlserve.serving.front.context import ServerContext
from rlserve.serving.front.filters import check_prompt
from rlserve.serving.front.generation import Generation, admit
from rlserve.serving.front.messages import message_reader, thinking_budget, wanted_form
from rlserve.serving.front.prompts import affinity_of_conversation, encode_rendered, max_tokens_of, render_conversation
from rlserve.serving.protocol.conversation import Conversation
from rlserve.serving.protocol.errors import ApiError
from rlserve.serving.protocol.sampling import to_sampling_params


@dataclass(frozen=True, kw_only=True)
class TurnNews:
    """What is new of one answer."""

    choice: ChoiceNews
    """Its tokens, and how it ended."""
    message: MessageNews
    """Its text, by what it is."""


class Turn:
    """The answers to one conversation, of which there may be several, or to each of several."""

    def __init__(self, conversations: Sequence[Conversation], choices: Choices) -> None:
        self.choices = choices
        context, requests = choices.generation.context, choices.generation.requests
        self.request = requests[0]
        """Of the first conversation."""
        self._tells_reasoning = conversations[0].tells_reasoning
        self._reasoning = ["" for _ in range(len(choices))]
        self._readers = [
            message_reader(context, conversation, request)
            for conversation, request in zip(conversations, requests, strict=True)
            for _ in range(len(choices) // len(requests))
        ]

    @property
    def generation(self) -> Generation:
        """Of the answers."""
        return self.choices.generation

    def whole(self, outputs: Sequence[RequestOutput]) -> list[TurnNews]:
        """All of each answer."""
        return [self.read(choice, is_last=True) for choice in self.choices.whole(outputs)]

    def pieces(self, outputs: Sequence[RequestOutput]) -> Iterator[TurnNews]:
        """The same as a stream would tell it, where more than its text is told of each token."""
        choices = self.choices
        news = choices.tokens(outputs) if choices.options.tells_tokens else iter(choices.whole(outputs))
        return (self.read(choice, is_last=choice.finish_reason is not None) for choice in news)

    async def news(self) -> AsyncGenerator[list[TurnNews]]:
        """What there is to tell, as it comes. Close it to abort the rest.

        Raises:
            ApiError: the engine refused the request, or no replica could answer it.
        """
        async with aclosing(self.choices.news()) as news:
            async for each in news:
                yield [self.read(choice, is_last=choice.finish_reason is not None) for choice in each]

    def read(self, choice: ChoiceNews, *, is_last: bool) -> TurnNews:
        """What the next piece of an answer says."""
        message = self._readers[choice.index].take(choice.text, is_last=is_last)
        self._reasoning[choice.index] += message.reasoning
        if not self._tells_reasoning:
            message = replace(message, reasoning="")
        return TurnNews(choice=choice, message=message)

    def num_reasoning_tokens(self) -> int:
        """At the end: those of the reasoning, told or not, as the tokenizer counts its text."""
        vocabulary = self.choices.vocabulary
        return sum(len(vocabulary.encode(text, add_special_tokens=False)) for text in self._reasoning if text)

    def usage(self) -> dict[str, Any]:
        """At the end, with the tokens of the reasoning."""
        details = {"reasoning_tokens": self.num_reasoning_tokens()}
        return {**self.choices.usage(), "completion_tokens_details": details}


async def begin_turn(
    context: ServerContext, conversation: Conversation, answer_id: str, arrived_s: float, *, streams: bool
) -> Turn:
    """Have the model go on with a conversation.

    Args:
        answer_id: of the engine's request, too.
        arrived_s: when the client's request did, on the performance counter.
        streams: whether the answers are streamed.

    Raises:
        ApiError: it cannot be had, or not now.
    """
    request = await _engine_request(context, conversation, answer_id)
    return _begin(context, [conversation], [request], arrived_s, streams=streams)


async def begin_turns(
    context: ServerContext, conversations: Sequence[Conversation], answer_id: str, arrived_s: float
) -> Turn:
    """Have the model go on with each of several conversations, of which the same is asked; nothing is streamed.

    Args:
        answer_id: the engine's requests have it with a number.
        arrived_s: when the client's request did, on the performance counter.

    Raises:
        ApiError: one cannot be had, or not all of them now.
    """
    requests = [
        await _engine_request(context, conversation, f"{answer_id}-{position}")
        for position, conversation in enumerate(conversations)
    ]
    return _begin(context, conversations, requests, arrived_s, streams=False)


def _begin(
    context: ServerContext,
    conversations: Sequence[Conversation],
    requests: Sequence[engine.Request],
    arrived_s: float,
    *,
    streams: bool,
) -> Turn:
    first = conversations[0]
    generation = admit(context, requests, affinity_of_conversation(first), arrived_s)
    generation = beam_generation(generation, first.sampling)
    options = choice_options(context, first.sampling, first.num_logprobs, streams=streams)
    return Turn(conversations, Choices(generation, options))


async def _engine_request(context: ServerContext, conversation: Conversation, request_id: str) -> engine.Request:
    asked = conversation.sampling
    form = wanted_form(context, conversation)
    adapter = context.check_model(asked.model)
    text = await render_conversation(context, conversation)
    await check_prompt(context, text, conversation.messages_name)
    prompt = await encode_rendered(context, conversation, text)
    if not prompt:
        message = "the chat template makes no text of this conversation"
        raise ApiError(400, message, conversation.messages_name)
    sampling = to_sampling_params(
        asked,
        max_tokens=_max_tokens(context, conversation, len(prompt)),
        end_token_ids=context.end_token_ids,
        num_logprobs=context.count_logprobs("top_logprobs", conversation.num_logprobs) or 0,
        prompt_logprobs=context.count_logprobs("prompt_logprobs", asked.prompt_logprobs),
        structured_output=form,
        thinking_budget=None if form is not None else thinking_budget(context, conversation, prompt),
    )
    return engine.Request(
        id=request_id,
        prompt_token_ids=prompt,
        sampling=sampling,
        priority=asked.priority or 0,
        cache_salt=asked.cache_salt or "",
        adapter=adapter,
    )


def _max_tokens(context: ServerContext, conversation: Conversation, num_prompt_tokens: int) -> int:
    given = conversation.max_tokens
    return max_tokens_of(
        context,
        None if conversation.cuts_max_tokens else given,
        given if conversation.cuts_max_tokens else None,
        num_prompt_tokens,
        name=conversation.max_tokens_name,
        prompt=conversation.messages_name,
    )
