"""``/v1/messages``: an answer as blocks and as the events that tell of them.

::

    begin ──► message_start, ping
    take ───► for each block: content_block_start ─► content_block_delta, again and again ─► content_block_stop
    end ────► message_delta, message_stop
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

from rlserve.serving.answers.message import MessageNews
from rlserve.serving.answers.parts import Part, PartNews, Parts

Event = dict[str, Any]


class MessageWriter:
    """
    Args:
        base: of the message: what is known before its answer.
    """

    def __init__(self, base: Mapping[str, Any]) -> None:
        self.message: dict[str, Any] = {**base, "content": [], "stop_reason": None, "stop_sequence": None}
        self.parts = Parts()

    def begin(self, usage: Mapping[str, Any]) -> list[Event]:
        """Before anything was generated."""
        return [{"type": "message_start", "message": {**self.message, "usage": usage}}, {"type": "ping"}]

    def take(self, news: MessageNews) -> list[Event]:
        """A piece of the answer."""
        return [event for each in self.parts.take(news) for event in _of_part(each)]

    def end(self, stop_reason: str, stop_sequence: str | None, usage: Mapping[str, Any]) -> list[Event]:
        """Nothing follows."""
        events = [event for each in self.parts.end() for event in _of_part(each)]
        end = {"stop_reason": stop_reason, "stop_sequence": stop_sequence}
        self.message |= {**end, "content": [_block(part) for part in self.parts.all], "usage": usage}
        return [*events, {"type": "message_delta", "delta": end, "usage": usage}, {"type": "message_stop"}]


def _of_part(news: PartNews) -> Iterator[Event]:
    part = news.part
    match news.what:
        case "begin":
            yield {"type": "content_block_start", "index": part.index, "content_block": _new_block(part)}
        case "piece":
            yield _delta(part, _piece(part, news.piece))
        case "end":
            if part.kind == "reasoning":
                yield _delta(part, {"type": "signature_delta", "signature": _signature(part)})
            yield {"type": "content_block_stop", "index": part.index}


def _delta(part: Part, delta: Mapping[str, Any]) -> Event:
    return {"type": "content_block_delta", "index": part.index, "delta": delta}


def _new_block(part: Part) -> dict[str, Any]:
    match part.kind:
        case "reasoning":
            return {"type": "thinking", "thinking": "", "signature": ""}
        case "text":
            return {"type": "text", "text": ""}
        case "call":
            return {"type": "tool_use", "id": part.call_id, "name": part.name, "input": {}}


def _piece(part: Part, piece: str) -> dict[str, Any]:
    match part.kind:
        case "reasoning":
            return {"type": "thinking_delta", "thinking": piece}
        case "text":
            return {"type": "text_delta", "text": piece}
        case "call":
            return {"type": "input_json_delta", "partial_json": piece}


def _block(part: Part) -> dict[str, Any]:
    match part.kind:
        case "reasoning":
            return {"type": "thinking", "thinking": part.text, "signature": _signature(part)}
        case "text":
            return {"type": "text", "text": part.text}
        case "call":
            return {**_new_block(part), "input": _input(part.text)}


def _input(arguments: str) -> dict[str, Any]:
    """What a tool is called with. Arguments that are no object, or were cut off, are told as Anthropic's guide has
    clients tell them: the model may have written anything."""
    try:
        found = json.loads(arguments)
    except (ValueError, RecursionError):
        found = None
    return found if isinstance(found, dict) else {"INVALID_JSON": arguments}


def _signature(part: Part) -> str:
    """Clients send thinking back only with one. It proves nothing."""
    return hashlib.sha256(part.text.encode("utf-8", "surrogatepass")).hexdigest()
