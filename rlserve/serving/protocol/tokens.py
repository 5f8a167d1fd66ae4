"""``/tokenize`` and ``/detokenize``."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import ConfigDict, Field

from rlserve.serving.protocol.message import Message
from rlserve.serving.protocol.sampling import ApiModel, FirstOnly, Tokens
from rlserve.serving.protocol.tools import MAX_TOOLS, ToolSpec


class TokenizeRequest(ApiModel):
    """A text, or a conversation."""

    model_config = ConfigDict(
        json_schema_extra={
            "anyOf": [
                {"properties": {"prompt": {"type": "string"}}, "required": ["prompt"]},
                {"properties": {"messages": {"type": "array"}}, "required": ["messages"]},
            ]
        }
    )

    model: str | None = None
    prompt: str | None = None
    messages: Annotated[list[Message], FirstOnly(), Field(min_length=1)] | None = None
    add_special_tokens: bool | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    tools: Annotated[list[ToolSpec], FirstOnly(), Field(max_length=MAX_TOOLS)] | None = None
    """That the template shows."""
    return_token_strs: bool | None = None


class DetokenizeRequest(ApiModel):
    """Tokens."""

    model: str | None = None
    tokens: Tokens
