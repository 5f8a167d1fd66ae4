"""Answers that are sent in one piece."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import orjson
from starlette.requests import Request
from starlette.responses import Response

from rlserve.engine.requests.request import RequestOutput
from rlserve.serving.front.event_stream import CLIENT_CLOSED_REQUEST, until_disconnect
from rlserve.serving.front.generation import Generation


def json_response(content: Any) -> Response:
    """JSON, written by a fast library."""
    return Response(orjson.dumps(content), media_type="application/json")


async def whole_answer(
    request: Request, generation: Generation, content: Callable[[Sequence[RequestOutput]], Any]
) -> Response:
    """Generate, and answer with the content of the outputs; a client that leaves has its requests aborted.

    Raises:
        ApiError: the engine refused a request, or no replica could answer it.
    """
    outputs = await until_disconnect(request.receive, generation.outputs())
    if outputs is None:
        return Response(status_code=CLIENT_CLOSED_REQUEST)
    return json_response(content(outputs))
