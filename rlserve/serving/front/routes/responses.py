"""``POST /v1/responses``."""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from rlserve.serving.answers.log_probs import chat_log_probs
from rlserve.serving.answers.response_writer import Event, ResponseWriter
from rlserve.serving.answers.usage import response_usage
from rlserve.serving.front.body import read_model
from rlserve.serving.front.context import context_of
from rlserve.serving.front.description import gives, takes
from rlserve.serving.front.event_stream import CLIENT_CLOSED_REQUEST, EventStream, typed_events, until_disconnect
from rlserve.serving.front.generation import new_answer_id
from rlserve.serving.front.turn import Turn, TurnNews, begin_turn
from rlserve.serving.front.whole_answer import json_response
from rlserve.serving.protocol.errors import ApiError
from rlserve.serving.protocol.response_schemas import ResponseAnswer
from rlserve.serving.protocol.responses import ResponsesRequest

router = APIRouter()


@router.post("/v1/responses", openapi_extra=takes(ResponsesRequest) | gives(ResponseAnswer, streams=True))
async def respond(request: Request) -> Response:
    """Go on with a conversation. Nothing of it is kept."""
    arrived_s = time.perf_counter()
    context = context_of(request)
    asked = await read_model(request, ResponsesRequest, context.config.limits)
    asked.check(context.config.limits)
    response_id = new_answer_id("resp_")
    conversation = asked.conversation_of(context.renderer.template)
    turn = await begin_turn(context, conversation, response_id, arrived_s, streams=bool(asked.stream))
    base = _base(asked, response_id, asked.model or context.config.model_name)
    answer = _Answer(turn, ResponseWriter(base, lambda prefix: prefix + secrets.token_hex(16)))
    if asked.stream:
        return EventStream(typed_events(answer.events()), context.config.limits.stalled_reader_s)
    is_there = await until_disconnect(request.receive, answer.whole())
    return json_response(answer.writer.response) if is_there else Response(status_code=CLIENT_CLOSED_REQUEST)


class _Answer:
    """One answer, as it comes."""

    def __init__(self, turn: Turn, writer: ResponseWriter) -> None:
        self.writer = writer
        self._turn = turn
        self._finish_reason: str | None = None

    async def whole(self) -> bool:
        """All of it; its events are nobody's."""
        for news in self._turn.pieces(await self._turn.choices.outputs()):
            self._take(news)
        self._end()
        return True

    async def events(self) -> AsyncGenerator[list[Event]]:
        """One behind the other."""
        yield self.writer.begin()
        try:
            async with aclosing(self._turn.news()) as each:
                async for news in each:
                    yield [event for one in news for event in self._take(one)]
        except ApiError as error:
            yield self.writer.fail("invalid_prompt" if error.status < 500 else "server_error", error.message)
            return
        yield self._end()

    def _take(self, news: TurnNews) -> list[Event]:
        choice, log_probs = news.choice, []
        self._finish_reason = choice.finish_reason
        if self._turn.choices.options.num_logprobs is not None:
            told = chat_log_probs(
                self._turn.choices.vocabulary, choice.token_ids, choice.log_probs, choice.top_log_probs
            )
            log_probs = told["content"]
        return self.writer.take(news.message, log_probs)

    def _end(self) -> list[Event]:
        usage = response_usage(
            num_prompt_tokens=self._turn.choices.num_prompt_tokens,
            num_generated_tokens=self._turn.choices.num_generated_tokens,
            num_cached_tokens=self._turn.choices.num_cached_tokens,
            num_reasoning_tokens=self._turn.num_reasoning_tokens(),
        )
        return self.writer.end(self._finish_reason, usage, int(time.time()))


def _base(asked: ResponsesRequest, response_id: str, model_name: str) -> Mapping[str, Any]:
    """What is known of a response before its answer."""
    given = asked.model_dump(
        by_alias=True,
        exclude_none=True,
        include={"instructions", "max_output_tokens", "max_tool_calls", "metadata", "prompt_cache_key", "reasoning"}
        | {"safety_identifier", "text", "tool_choice", "tools", "user", "top_logprobs", "parallel_tool_calls"},
    )
    return {
        "id": response_id,
        "object": "response",
        "created_at": int(time.time()),
        "completed_at": None,
        "model": model_name,
        "background": False,
        "conversation": None,
        "error": None,
        "incomplete_details": None,
        "instructions": None,
        "max_output_tokens": None,
        "max_tool_calls": None,
        "metadata": {},
        "parallel_tool_calls": True,
        "previous_response_id": None,
        "prompt": None,
        "prompt_cache_key": None,
        "safety_identifier": None,
        "service_tier": "default",
        "store": False,
        "temperature": 1.0 if asked.temperature is None else asked.temperature,
        "tool_choice": "auto",
        "top_logprobs": 0,
        "top_p": 1.0 if asked.top_p is None else asked.top_p,
        "truncation": "disabled",
        "usage": None,
        "user": None,
        **given,
        "reasoning": {"effort": None, "summary": None, **given.get("reasoning", {})},
        "text": {"format": {"type": "text"}, **given.get("text", {})},
        "tools": [_tool(tool) for tool in given.get("tools", ())],
    }


def _tool(given: Mapping[str, Any]) -> dict[str, Any]:
    return {"description": None, "parameters": None, "strict": None, **given}
