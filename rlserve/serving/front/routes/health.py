"""``/health``, ``/ready``, ``/load``, ``/version``, ``/metrics``."""

from __future__ import annotations

import asyncio
import secrets
import time

from fastapi import APIRouter, Request
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.responses import PlainTextResponse, Response

from rlserve import __version__
from rlserve.engine.requests import request as engine
from rlserve.engine.requests.request import SamplingParams
from rlserve.serving.front.context import context_of
from rlserve.serving.front.description import gives
from rlserve.serving.front.generation import admit
from rlserve.serving.front.whole_answer import json_response
from rlserve.serving.protocol.answer_schemas import LoadAnswer, VersionAnswer
from rlserve.serving.protocol.errors import ApiError

router = APIRouter()

_PROBE_TIMEOUT_S = 30.0


@router.get("/health", response_class=Response)
async def health(request: Request, generate: int = 0) -> Response:
    """200 while a replica takes requests; with ``?generate=1`` once one has generated a token."""
    context = context_of(request)
    if context.pool.num_ready == 0:
        raise ApiError(503, "no replica is ready")
    if generate:
        probe = engine.Request(
            id=f"health-{secrets.token_hex(8)}",
            prompt_token_ids=(0,),
            sampling=SamplingParams(max_tokens=1, temperature=0.0, ignore_eos=True),
        )
        try:
            async with asyncio.timeout(_PROBE_TIMEOUT_S):
                await admit(context, [probe], "health", time.perf_counter()).outputs()
        except TimeoutError as error:
            raise ApiError(503, f"no token was generated within {_PROBE_TIMEOUT_S:g} s") from error
    return Response()


@router.get("/ready", response_class=Response)
async def ready(request: Request) -> Response:
    """200 while new requests are welcome: not while the server starts, ends, is drained or paused."""
    context = context_of(request)
    draining = context.draining
    if not draining.is_ready or draining.is_paused or context.pool.num_ready == 0:
        raise ApiError(503, "not ready")
    return Response()


@router.get("/load", openapi_extra=gives(LoadAnswer))
async def load(request: Request) -> Response:
    """Answers under way, for balancers that ask for it."""
    return json_response({"server_load": context_of(request).pool.num_live_samples})


@router.get("/version", openapi_extra=gives(VersionAnswer))
async def version(request: Request) -> Response:
    """Of rlserve."""
    return json_response({"version": __version__})


@router.head("/metrics", include_in_schema=False)
@router.get("/metrics", response_class=PlainTextResponse)
async def metrics(request: Request) -> Response:
    """For Prometheus."""
    context = context_of(request)
    await context.pool.refresh()
    return Response(context.metrics.render(), media_type=CONTENT_TYPE_LATEST)
