"""Messages of a conversation, as ``/v1/chat/completions`` takes them and chat templates read them."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field

from rlserve.serving.protocol.errors import ApiError
from rlserve.serving.protocol.sampling import ApiModel, FirstOnly


class TextPart(ApiModel):
    """The only kind of part that a text model reads."""

    type: Literal["text"]
    text: str


class Message(ApiModel):
    """One message of a conversation. What it has besides is given to the template."""

    model_config = ConfigDict(extra="allow")

    role: Annotated[str, Field(min_length=1, max_length=64)]
    """``system``, ``user``, ``assistant``, ``tool``, or what else the template knows. ``developer`` is ``system``."""
    content: str | Annotated[list[TextPart], FirstOnly()] | None = None

    @property
    def text(self) -> str:
        """Its parts, one behind the other."""
        if isinstance(self.content, list):
            return "".join(part.text for part in self.content)
        return self.content or ""

    def for_template(self) -> dict[str, Any]:
        """As templates read it."""
        role = "system" if self.role == "developer" else self.role
        extra = dict(self.model_extra or {})
        if isinstance(calls := extra.get("tool_calls"), list):
            extra["tool_calls"] = [_with_parsed_arguments(call) for call in calls]
        return {**extra, "role": role, "content": self.text}


def _with_parsed_arguments(call: Any) -> Any:
    """Clients send the arguments of calls as JSON in a string; templates write them themselves."""
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("arguments"), str):
        return call
    try:
        arguments = json.loads(function["arguments"] or "{}")
    except (ValueError, RecursionError) as error:
        raise ApiError(400, f"messages: the arguments of a call are no JSON: {error}", "messages") from error
    return {**call, "function": {**function, "arguments": arguments}}
