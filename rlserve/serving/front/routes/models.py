"""``GET /v1/models``."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request

from rlserve.serving.front.context import ServerContext, context_of
from rlserve.serving.front.description import gives
from rlserve.serving.protocol.answer_schemas import ModelCard, ModelList

router = APIRouter()


@router.get("/v1/models", response_model=None, openapi_extra=gives(ModelList))
async def list_models(request: Request) -> dict[str, Any]:
    """The model that is served, and its adapters."""
    context = context_of(request)
    return {"object": "list", "data": [_card(context, name) for name in (None, *context.adapters)]}


@router.get("/v1/models/{name:path}", response_model=None, openapi_extra=gives(ModelCard))
async def show_model(request: Request, name: str) -> dict[str, Any]:
    """One of them by its name."""
    context = context_of(request)
    return _card(context, context.check_model(name))


def _card(context: ServerContext, adapter: str | None) -> dict[str, Any]:
    """Of an adapter, or of the model itself."""
    name = context.config.model_name
    return {
        "id": adapter or name,
        "object": "model",
        "created": context.started_s,
        "owned_by": "rlserve",
        "root": context.config.model.path if adapter is None else context.adapters[adapter],
        "parent": None if adapter is None else name,
        "max_model_len": context.pool.limits.max_model_len,
    }
