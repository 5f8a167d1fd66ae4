"""Bodies of requests: read within a limit, and checked."""

from __future__ import annotations

import asyncio
from typing import TypeVar

from pydantic import BaseModel, ValidationError
from starlette.requests import ClientDisconnect, Request

from rlserve.serving.config import LimitsConfig
from rlserve.serving.front.caller import current_caller
from rlserve.serving.protocol.errors import ApiError, of_validation

ModelT = TypeVar("ModelT", bound=BaseModel)


async def read_model(request: Request, model: type[ModelT], limits: LimitsConfig) -> ModelT:
    """The body of a request, as what it must be.

    Raises:
        ApiError: it is too large, too slow, no JSON, or not what it must be.
    """
    return parsed(await read_body(request, limits), model)


def parsed(body: bytes, model: type[ModelT]) -> ModelT:
    """A body as what it must be, or raise ``ApiError``."""
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        raise of_validation(error) from None  # its text quotes the body


async def read_body(request: Request, limits: LimitsConfig) -> bytes:
    """The body of a request that says it is JSON.

    Raises:
        ApiError: it does not, is too large, or too slow.
    """
    content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if content_type != "application/json":
        # Also keeps out what a page in a browser can send without asking first.
        raise ApiError(415, "the body must be JSON: send Content-Type: application/json")
    body = await _read(request, limits)
    if (caller := current_caller()).keeps_body:
        caller.body = body
    return body


async def _read(request: Request, limits: LimitsConfig) -> bytes:
    too_large = ApiError(413, f"the body has more than {limits.max_body_bytes} bytes", headers={"Connection": "close"})
    declared = request.headers.get("content-length", "0")
    if not declared.isdecimal() or int(declared[:20]) > limits.max_body_bytes:
        raise too_large
    body = bytearray()
    try:
        async with asyncio.timeout(limits.body_timeout_s):
            async for part in request.stream():
                body += part
                if len(body) > limits.max_body_bytes:
                    raise too_large
    except TimeoutError as error:
        raise ApiError(
            408, f"the body did not arrive within {limits.body_timeout_s:g} s", headers={"Connection": "close"}
        ) from error
    except ClientDisconnect as error:
        raise ApiError(400, "the body was cut off") from error
    return bytes(body)
