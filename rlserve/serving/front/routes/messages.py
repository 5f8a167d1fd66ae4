"""``POST /v1/messages`` and ``POST /v1/messages/count_tokens``."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from rlserve.engine.requests.request import FinishReason
from rlserve.serving.answers.message_writer import Event, MessageWriter
from rlserve.serving.content.base import CONTENT_FILTER
from rlserve.serving.front.body import read_model
from rlserve.serving.front.context import ServerContext, context_of
from rlserve.serving.front.description import gives, takes
from rlserve.serving.front.error_shapes import error_body
from rlserve.serving.front.event_stream import CLIENT_CLOSED_REQUEST, EventStream, typed_events, until_disconnect
from rlserve.serving.front.generation import new_answer_id
from rlserve.serving.front.messages import reasoning_format
from rlserve.serving.front.prompts import encode_conversation
from rlserve.serving.front.turn import Turn, TurnNews, begin_turn
from rlserve.serving.front.whole_answer import json_response
from rlserve.serving.protocol.conversation import Conversation
from rlserve.serving.protocol.errors import ApiError
from rlserve.serving.protocol.message_schemas import MessageAnswer, TokenCount
from rlserve.serving.protocol.messages import CountTokensRequest, MessagesRequest

router = APIRouter()
_PATH = "/v1/messages"


@router.post(_PATH, openapi_extra=takes(MessagesRequest) | gives(MessageAnswer, streams=True))
async def create(request: Request) -> Response:
    """Go on with a conversation."""
    arrived_s = time.perf_counter()
    context = context_of(request)
    asked = await read_model(request, MessagesRequest, context.config.limits)
    asked.check(context.config.limits)
    message_id = new_answer_id("msg_")
    conversation = _generating(context, asked)
    turn = await begin_turn(context, conversation, message_id, arrived_s, streams=bool(asked.stream))
    base = {"id": message_id, "type": "message", "role": "assistant", "model": asked.model or context.config.model_name}
    answer = _Answer(turn, MessageWriter(base), asked.max_tokens)
    if asked.stream:
        return EventStream(typed_events(answer.events()), context.config.limits.stalled_reader_s)
    is_there = await until_disconnect(request.receive, answer.whole())
    return json_response(answer.writer.message) if is_there else Response(status_code=CLIENT_CLOSED_REQUEST)


@router.post(f"{_PATH}/count_tokens", openapi_extra=takes(CountTokensRequest) | gives(TokenCount))
async def count_tokens(request: Request) -> Response:
    """How many tokens a conversation has, with its tools."""
    context = context_of(request)
    asked = await read_model(request, CountTokensRequest, context.config.limits)
    asked.check_conversation()
    context.check_model(asked.model)
    tokens = await encode_conversation(context, _conversation(context, asked))
    return json_response({"input_tokens": len(tokens)})


def _conversation(context: ServerContext, asked: CountTokensRequest) -> Conversation:
    return asked.conversation_of(context.renderer.template, has_reasoning=reasoning_format(context) is not None)


def _generating(context: ServerContext, asked: MessagesRequest) -> Conversation:
    session = None if asked.metadata is None else asked.metadata.user_id
    return replace(
        _conversation(context, asked),
        sampling=asked.sampling(),
        max_tokens=asked.max_tokens,
        cuts_max_tokens=True,
        session=session,
    )


class _Answer:
    """One answer, as it comes."""

    def __init__(self, turn: Turn, writer: MessageWriter, max_tokens: int) -> None:
        self.writer = writer
        self._turn = turn
        self._max_tokens = max_tokens
        self._end: TurnNews | None = None

    async def whole(self) -> bool:
        """All of it; its events are nobody's."""
        for news in self._turn.whole(await self._turn.choices.outputs()):
            self._take(news)
        self._finish()
        return True

    async def events(self) -> AsyncGenerator[list[Event]]:
        """One behind the other."""
        yield self.writer.begin(self._usage())
        try:
            async with aclosing(self._turn.news()) as each:
                async for news in each:
                    yield [event for one in news for event in self._take(one)]
        except ApiError as error:
            yield [error_body(_PATH, error)]
            return
        yield self._finish()

    def _take(self, news: TurnNews) -> list[Event]:
        self._end = news
        return self.writer.take(news.message)

    def _finish(self) -> list[Event]:
        assert self._end is not None
        reason = self._stop_reason(self._end)
        stop_sequence = self._end.choice.stop_reason if reason == "stop_sequence" else None
        assert stop_sequence is None or isinstance(stop_sequence, str)
        return self.writer.end(reason, stop_sequence, self._usage())

    def _stop_reason(self, end: TurnNews) -> str:
        if end.choice.finish_reason == CONTENT_FILTER:
            return "refusal"
        if end.choice.finish_reason is FinishReason.LENGTH:
            choices = self._turn.choices
            is_full = choices.num_prompt_tokens + choices.num_generated_tokens >= (
                choices.generation.context.pool.limits.max_model_len
            )
            is_cut = choices.num_generated_tokens < self._max_tokens
            return "model_context_window_exceeded" if is_full and is_cut else "max_tokens"
        if end.message.has_called:
            return "tool_use"
        return "stop_sequence" if isinstance(end.choice.stop_reason, str) else "end_turn"

    def _usage(self) -> dict[str, Any]:
        choices = self._turn.choices
        return {
            "input_tokens": choices.num_prompt_tokens - choices.num_cached_tokens,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": choices.num_cached_tokens,
            "output_tokens": choices.num_generated_tokens,
        }
