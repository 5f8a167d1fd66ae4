"""The application: all routes, and errors in OpenAI's shape whatever they come from."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from rlserve import __version__
from rlserve.serving.admin import adapter_routes
from rlserve.serving.admin import routes as admin
from rlserve.serving.admin.base import Operations
from rlserve.serving.admin.key_files import KeyFiles
from rlserve.serving.front.context import ServerContext
from rlserve.serving.front.description import KeyRules, describe
from rlserve.serving.front.error_shapes import error_body
from rlserve.serving.front.load_reports import LoadReports
from rlserve.serving.front.routes import (
    chat,
    completions,
    health,
    messages,
    models,
    page,
    responses,
    sagemaker,
    tgi,
    tokens,
)
from rlserve.serving.keys import Keys
from rlserve.serving.protocol.answer_schemas import (
    ChatAnswer,
    CompletionAnswer,
    DetokenizeAnswer,
    LoadAnswer,
    ModelCard,
    ModelList,
    TgiAnswerContent,
    TgiInfo,
    TokenizeAnswer,
    TokenizerInfo,
    VersionAnswer,
)
from rlserve.serving.protocol.chat import BatchChatRequest, ChatRequest
from rlserve.serving.protocol.completions import CompletionRequest
from rlserve.serving.protocol.errors import ApiError
from rlserve.serving.protocol.message_schemas import MessageAnswer, TokenCount
from rlserve.serving.protocol.messages import CountTokensRequest, MessagesRequest
from rlserve.serving.protocol.response_schemas import ResponseAnswer
from rlserve.serving.protocol.responses import ResponsesRequest
from rlserve.serving.protocol.tgi import GenerateRequest
from rlserve.serving.protocol.tokens import DetokenizeRequest, TokenizeRequest

logger = logging.getLogger(__name__)

ROUTERS = (
    *(models.router, completions.router, chat.router, responses.router, messages.router),
    *(tokens.router, tgi.router, sagemaker.router, health.router, page.router),
)
ADMIN_ROUTERS = (admin.router, admin.profile_router, adapter_routes.router)
_BODIES: tuple[type[BaseModel], ...] = (
    *(CompletionRequest, ChatRequest, BatchChatRequest, ResponsesRequest, MessagesRequest, CountTokensRequest),
    *(TokenizeRequest, DetokenizeRequest, GenerateRequest),
)
_ANSWERS: tuple[type[BaseModel], ...] = (
    *(CompletionAnswer, ChatAnswer, ResponseAnswer, MessageAnswer, TokenCount, ModelList, ModelCard),
    *(TokenizeAnswer, DetokenizeAnswer, VersionAnswer, TgiAnswerContent, TgiInfo, TokenizerInfo, LoadAnswer),
)


def create_app(context: ServerContext) -> FastAPI:
    """The application without its gate. Its pages for browsers load scripts from elsewhere, so there are none."""
    root_path = context.config.root_path
    servers = [{"url": root_path}] if root_path else None
    app = FastAPI(title="rlserve", version=__version__, docs_url=None, redoc_url=None, servers=servers)
    app.state.context = context
    app.add_middleware(LoadReports, pool=context.pool)
    for router in ROUTERS:
        app.include_router(router)
    return _finished(app, context, context.keys, _BODIES, _ANSWERS)


def create_admin_app(context: ServerContext, operations: Operations, key_files: KeyFiles) -> FastAPI:
    """The application behind the admin listener, without its gate."""
    app = FastAPI(title="rlserve admin", version=__version__, docs_url=None, redoc_url=None)
    app.state.context, app.state.operations, app.state.key_files = context, operations, key_files
    for router in ADMIN_ROUTERS:
        app.include_router(router)
    return _finished(app, context, key_files.operators, admin.BODIES, ())


def _finished(
    app: FastAPI,
    context: ServerContext,
    keys: Keys,
    bodies: Sequence[type[BaseModel]],
    answers: Sequence[type[BaseModel]],
) -> FastAPI:
    described: dict[KeyRules, dict[str, Any]] = {}

    def openapi() -> dict[str, Any]:
        """Once it is asked for: how large the vocabulary is, the first replica says; and anew where keys change."""
        rules = KeyRules(has_keys=len(keys) > 0, has_limits=keys.has_limits)
        if rules not in described:
            described[rules] = describe(
                app,
                bodies=bodies,
                answers=answers,
                limits=context.config.limits,
                vocab_size=context.pool.limits.vocab_size,
                key_rules=rules,
            )
        return described[rules]

    app.add_exception_handler(ApiError, _answer_api_error)
    app.add_exception_handler(HTTPException, _answer_http_error)
    app.add_exception_handler(RequestValidationError, _answer_bad_parameter)
    app.add_exception_handler(Exception, _answer_bug)
    app.openapi = openapi  # type: ignore[method-assign]  # as FastAPI documents it
    return app


async def _answer_api_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return JSONResponse(error_body(request.url.path, error), status_code=error.status, headers=error.headers)


async def _answer_http_error(request: Request, error: Exception) -> Response:
    """A path or a method that there is not."""
    assert isinstance(error, HTTPException)
    content = error_body(request.url.path, ApiError(error.status_code, str(error.detail)))
    return JSONResponse(content, status_code=error.status_code, headers=error.headers)


async def _answer_bad_parameter(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    name = str(first["loc"][-1])
    content = error_body(request.url.path, ApiError(400, f"{name}: {first['msg']}", name))
    return JSONResponse(content, status_code=400)


async def _answer_bug(request: Request, error: Exception) -> Response:
    """Its text may quote a prompt; the log has its traceback."""
    content = error_body(request.url.path, ApiError(500, "the server failed; its log says how"))
    return JSONResponse(content, status_code=500)
