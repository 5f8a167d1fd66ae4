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
    """The model that is served."""
    return {"object": "list", "data": [_card(context_of(request))]}


@router.get("/v1/models/{name:path}", response_model=None, openapi_extra=gives(ModelCard))
async def show_model(request: Request, name: str) -> dict[str, Any]:
    """The same by its name."""
    context = context_of(request)
    context.check_model(name)
    return _card(context)


def _card(context: ServerContext) -> dict[str, Any]:
    return {
        "id": context.config.model_name,
        "object": "model",
        "created": context.started_s,
        "owned_by": "rlserve",
        "root": context.config.model.path,
        "parent": None,
        "max_model_len": context.pool.limits.max_model_len,
    }
