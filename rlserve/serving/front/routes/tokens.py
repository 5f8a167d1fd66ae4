"""``POST /tokenize`` and ``POST /detokenize``, and ``GET /tokenizer_info``."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import Response

from rlserve.serving.front.body import read_model
from rlserve.serving.front.context import context_of
from rlserve.serving.front.description import gives, takes
from rlserve.serving.front.prompts import encode, encode_conversation
from rlserve.serving.front.whole_answer import json_response
from rlserve.serving.protocol.answer_schemas import DetokenizeAnswer, TokenizeAnswer, TokenizerInfo
from rlserve.serving.protocol.chat import ChatRequest
from rlserve.serving.protocol.errors import ApiError
from rlserve.serving.protocol.tokens import DetokenizeRequest, TokenizeRequest

router = APIRouter()


@router.post("/tokenize", openapi_extra=takes(TokenizeRequest) | gives(TokenizeAnswer))
async def tokenize(request: Request) -> Response:
    """The tokens of a text or of a conversation."""
    context = context_of(request)
    asked = await read_model(request, TokenizeRequest, context.config.limits)
    context.check_model(asked.model)
    if asked.messages is not None:
        chat = ChatRequest(
            messages=asked.messages,
            chat_template_kwargs=asked.chat_template_kwargs,
            add_generation_prompt=asked.add_generation_prompt,
            continue_final_message=asked.continue_final_message,
            add_special_tokens=asked.add_special_tokens,
            tools=asked.tools,
        )
        chat.check(context.config.limits)
        tokens = await encode_conversation(context, chat.conversation())
    elif asked.prompt is not None:
        tokens = await encode(context, asked.prompt, add_special_tokens=asked.add_special_tokens is not False)
    else:
        raise ApiError(400, "either prompt or messages must be given", "prompt")
    pieces = [context.vocabulary.piece_of(token) for token in tokens] if asked.return_token_strs else None
    return json_response(
        {
            "count": len(tokens),
            "max_model_len": context.pool.limits.max_model_len,
            "tokens": tokens,
            "token_strs": pieces,
        }
    )


@router.get("/tokenizer_info", openapi_extra=gives(TokenizerInfo))
async def tokenizer_info(request: Request) -> Response:
    """What the tokenizer was made with, and the chat template."""
    context = context_of(request)
    return json_response({**context.vocabulary.info, "chat_template": context.renderer.template or None})


@router.post("/detokenize", openapi_extra=takes(DetokenizeRequest) | gives(DetokenizeAnswer))
async def detokenize(request: Request) -> Response:
    """The text of some tokens."""
    context = context_of(request)
    asked = await read_model(request, DetokenizeRequest, context.config.limits)
    context.check_model(asked.model)
    vocab_size = context.pool.limits.vocab_size
    if any(not 0 <= token < vocab_size for token in asked.tokens):
        raise ApiError(400, f"token ids are whole numbers from 0 to {vocab_size - 1}", "tokens")
    return json_response({"prompt": context.vocabulary.decode(asked.tokens, skip_special_tokens=False)})
