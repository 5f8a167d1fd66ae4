"""``POST /v1/chat/completions`` and ``POST /v1/chat/completions/batch``."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from rlserve.engine.requests.request import RequestOutput
from rlserve.serving.answers.chat_answers import chat_choice, chat_chunk, first_chat_chunk
from rlserve.serving.answers.choice import ChoiceNews
from rlserve.serving.answers.log_probs import prompt_log_probs
from rlserve.serving.answers.message import MessageNews
from rlserve.serving.front.answer_stream import AnswerStream
from rlserve.serving.front.body import read_model
from rlserve.serving.front.context import ServerContext, context_of
from rlserve.serving.front.description import gives, takes
from rlserve.serving.front.event_stream import EventStream
from rlserve.serving.front.generation import new_answer_id
from rlserve.serving.front.turn import Turn, begin_turn, begin_turns
from rlserve.serving.front.whole_answer import whole_answer
from rlserve.serving.protocol.answer_schemas import ChatAnswer
from rlserve.serving.protocol.chat import BatchChatRequest, ChatRequest

router = APIRouter()


@router.post("/v1/chat/completions", openapi_extra=takes(ChatRequest) | gives(ChatAnswer, streams=True))
async def chat(request: Request) -> Response:
    """Go on with a conversation."""
    arrived_s = time.perf_counter()
    asked = await read_model(request, ChatRequest, context_of(request).config.limits)
    return await answer_chat(request, asked, arrived_s)


async def answer_chat(request: Request, asked: ChatRequest, arrived_s: float) -> Response:
    """Go on with the conversation of a body that was read.

    Args:
        arrived_s: when the request did, on the performance counter.
    """
    context = context_of(request)
    asked.check(context.config.limits)
    answer_id = new_answer_id("chatcmpl-")
    turn = await begin_turn(context, asked.conversation(), answer_id, arrived_s, streams=bool(asked.stream))
    if asked.stream:
        stream = _ChatStream(turn, asked, _base(context, asked, answer_id, "chat.completion.chunk"))
        return EventStream(stream.events(), context.config.limits.stalled_reader_s)
    base = _base(context, asked, answer_id)
    return await whole_answer(request, turn.choices.outputs(), lambda outputs: _content(turn, asked, base, outputs))


@router.post("/v1/chat/completions/batch", openapi_extra=takes(BatchChatRequest) | gives(ChatAnswer))
async def chat_batch(request: Request) -> Response:
    """Go on with each of several conversations. The choices have their order."""
    arrived_s = time.perf_counter()
    context = context_of(request)
    asked = await read_model(request, BatchChatRequest, context.config.limits)
    asked.check(context.config.limits)
    answer_id, each = new_answer_id("chatcmpl-"), asked.each
    turn = await begin_turns(context, [one.conversation() for one in each], answer_id, arrived_s)
    base = _base(context, asked, answer_id)
    return await whole_answer(request, turn.choices.outputs(), lambda outputs: _batch(turn, each, base, outputs))


def _base(
    context: ServerContext, asked: ChatRequest | BatchChatRequest, answer_id: str, kind: str = "chat.completion"
) -> dict[str, Any]:
    """What every answer begins with."""
    model = asked.model or context.config.model_name
    return {"id": answer_id, "object": kind, "created": int(time.time()), "model": model}


def _batch(
    turn: Turn, each: Sequence[ChatRequest], base: dict[str, Any], outputs: Sequence[RequestOutput]
) -> dict[str, Any]:
    """The whole answers to several conversations."""
    vocabulary, options = turn.choices.vocabulary, turn.choices.options
    choices = [
        chat_choice(vocabulary, options, news.choice, _behind(asked.echoed, news.message))
        for asked, news in zip(each, turn.whole(outputs), strict=True)
    ]
    told = {"usage": turn.usage(), **turn.choices.timings(), "prompt_token_ids": None, "prompt_logprobs": None}
    return {**base, "choices": choices, **told}


def _content(turn: Turn, asked: ChatRequest, base: dict[str, Any], outputs: Sequence[RequestOutput]) -> dict[str, Any]:
    """A whole answer."""
    vocabulary, options = turn.choices.vocabulary, turn.choices.options
    (output,), prompt_token_ids = outputs, turn.request.prompt_token_ids
    told_of_prompt = asked.prompt_logprobs is not None
    return {
        **base,
        "choices": [
            chat_choice(vocabulary, options, news.choice, _behind(asked.echoed, news.message))
            for news in turn.whole(outputs)
        ],
        "usage": turn.usage(),
        **turn.choices.timings(),
        "prompt_token_ids": list(prompt_token_ids) if asked.return_token_ids else None,
        "prompt_logprobs": prompt_log_probs(
            vocabulary, prompt_token_ids, output.prompt_log_probs, output.prompt_top_log_probs
        )
        if told_of_prompt
        else None,
    }


def _behind(echoed: str, message: MessageNews) -> MessageNews:
    return replace(message, content=echoed + message.content) if echoed else message


class _ChatStream(AnswerStream):
    def __init__(self, turn: Turn, asked: ChatRequest, base: dict[str, Any]) -> None:
        super().__init__(turn.choices, asked, base)
        self._turn = turn
        self._echoed = asked.echoed
        self._prompt_token_ids = turn.request.prompt_token_ids if asked.return_token_ids else None

    def first_chunks(self) -> Iterator[dict[str, Any]]:
        for index in range(len(self.choices)):
            chunk = self.chunk(first_chat_chunk(index))
            if self._prompt_token_ids is not None and index == 0:
                chunk["prompt_token_ids"] = list(self._prompt_token_ids)
            yield chunk
            if echoed := self._echoed:
                yield self.chunk({**first_chat_chunk(index), "delta": {"content": echoed}})

    def last_usage(self) -> dict[str, Any]:
        return self._turn.usage()

    def choice_chunk(self, news: ChoiceNews) -> dict[str, Any] | None:
        told = self._turn.read(news, is_last=news.finish_reason is not None)
        return chat_chunk(self.choices.vocabulary, self.choices.options, news, told.message)
