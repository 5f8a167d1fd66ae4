"""Answers that are sent in one piece."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import orjson
from starlette.requests import Request
from starlette.responses import Response

from rlserve.engine.requests.request import RequestOutput
from rlserve.serving.front.event_stream import CLIENT_CLOSED_REQUEST, until_disconnect


def json_response(content: Any) -> Response:
    """JSON, written by a fast library."""
    return Response(orjson.dumps(content), media_type="application/json")


async def whole_answer(
    request: Request,
    outputs: Coroutine[Any, Any, list[RequestOutput]],
    content: Callable[[Sequence[RequestOutput]], Any],
) -> Response:
    """Generate, and answer with the content of the outputs; a client that leaves has its requests aborted.

    Args:
        outputs: generates.

    Raises:
        ApiError: the engine refused a request, or no replica could answer it.
    """
    made = await until_disconnect(request.receive, outputs)
    if made is None:
        return Response(status_code=CLIENT_CLOSED_REQUEST)
    return json_response(content(made))
