"""``GET /ping`` and ``POST /invocations``: the two routes that a container of Amazon SageMaker has."""

from __future__ import annotations

import time

from fastapi import APIRouter, Request
from starlette.responses import Response

from rlserve.serving.front.body import parsed, read_body
from rlserve.serving.front.context import context_of
from rlserve.serving.front.description import gives, takes
from rlserve.serving.front.routes.chat import answer_chat
from rlserve.serving.front.routes.completions import answer_completion
from rlserve.serving.front.routes.health import health
from rlserve.serving.protocol.answer_schemas import ChatAnswer, CompletionAnswer
from rlserve.serving.protocol.chat import ChatRequest
from rlserve.serving.protocol.completions import CompletionRequest
from rlserve.serving.protocol.errors import ApiError
from rlserve.serving.protocol.sagemaker import InvocationShape

router = APIRouter()


@router.get("/ping", response_class=Response)
async def ping(request: Request) -> Response:
    """200 while a replica takes requests, as ``/health``."""
    return await health(request)


@router.post(
    "/invocations",
    openapi_extra=takes(ChatRequest, CompletionRequest) | gives(ChatAnswer, CompletionAnswer, streams=True),
)
async def invoke(request: Request) -> Response:
    """Go on with a conversation where the body has ``messages``, as ``/v1/chat/completions``; complete its ``prompt``
    else, as ``/v1/completions``."""
    arrived_s = time.perf_counter()
    body = await read_body(request, context_of(request).config.limits)
    given = parsed(body, InvocationShape).model_fields_set
    if "messages" in given:
        return await answer_chat(request, parsed(body, ChatRequest), arrived_s)
    if "prompt" in given:
        return await answer_completion(request, parsed(body, CompletionRequest), arrived_s)
    message = "the body: give messages, as for /v1/chat/completions, or a prompt, as for /v1/completions"
    raise ApiError(400, message, "messages")
