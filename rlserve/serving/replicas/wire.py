"""Messages as bytes: msgpack, with the dataclasses that may cross by name. Nothing else is ever built from bytes.

Both ends are processes of one server on one machine, so columns of tokens keep this machine's byte order.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields
from typing import Any, cast

import msgpack

from rlserve.engine.config import EngineConfig
from rlserve.engine.requests.delta import RequestDelta, SampleDelta
from rlserve.engine.requests.generated_tokens import GeneratedTokens
from rlserve.engine.requests.request import FinishReason, Request, RequestOutput, SampleOutput, SamplingParams
from rlserve.engine.requests.structured_output import StructuredOutput
from rlserve.engine.requests.thinking_budget import ThinkingBudget
from rlserve.engine.stats.metrics import Histogram, Labelled
from rlserve.serving.replicas.messages import (
    Abort,
    Beat,
    Done,
    Message,
    News,
    Order,
    Ready,
    Refused,
    Start,
    Submit,
)

_TOKENS, _DELTA = 0, 1
_CLASSES: tuple[type[Any], ...] = (
    *(Start, Submit, Abort, Order, Ready, Refused, News, Beat, Done),
    *(EngineConfig, Request, SamplingParams, StructuredOutput, RequestOutput, SampleOutput),
    *(Histogram, Labelled, ThinkingBudget),
)
"""That cross as the tuple of their fields, each under a code: its place here, after the two above."""
_CODES = {cls: code for code, cls in enumerate(_CLASSES, start=2)}
_FIELDS = {cls: tuple(field.name for field in fields(cls)) for cls in _CLASSES}
_AFTER_TOKENS = ("top_log_probs", "kept_support", "finish_reason", "stop_reason")
"""Of a sample's delta."""
MAX_MESSAGE_BYTES = 2**30


def pack(message: Message) -> bytes:
    """A message as bytes."""
    return cast(bytes, msgpack.packb(message, default=_to_plain))


class MessageReader:
    """Messages out of a stream of bytes."""

    def __init__(self) -> None:
        self._unpacker = msgpack.Unpacker(
            ext_hook=_from_plain, use_list=False, strict_map_key=False, max_buffer_size=MAX_MESSAGE_BYTES
        )

    def feed(self, data: bytes) -> Iterator[Message]:
        """Take the next bytes; yields the messages that they complete."""
        self._unpacker.feed(data)
        yield from self._unpacker


def _to_plain(value: Any) -> msgpack.ExtType:
    cls = type(value)
    if cls is RequestDelta:  # by far the most frequent: one part, not one inside the other
        samples = [
            (each.index, each.start, each.tokens.to_bytes(), *(getattr(each, name) for name in _AFTER_TOKENS))
            for each in value.samples
        ]
        content = (value.request_id, samples, value.output)
        return msgpack.ExtType(_DELTA, msgpack.packb(content, default=_to_plain))
    if cls is GeneratedTokens:
        return msgpack.ExtType(_TOKENS, value.to_bytes())
    content = tuple(getattr(value, name) for name in _FIELDS[cls])
    return msgpack.ExtType(_CODES[cls], msgpack.packb(content, default=_to_plain))


def _from_plain(code: int, data: bytes) -> Any:
    if code == _TOKENS:
        return GeneratedTokens.from_bytes(data)
    content = msgpack.unpackb(data, ext_hook=_from_plain, use_list=False, strict_map_key=False)
    if code == _DELTA:
        request_id, samples, output = content
        return RequestDelta(request_id=request_id, samples=tuple(map(_sample_delta, samples)), output=output)
    cls = _CLASSES[code - 2]
    values = dict(zip(_FIELDS[cls], content, strict=True))
    if (reason := values.get("finish_reason")) is not None:
        values["finish_reason"] = FinishReason(reason)  # msgpack makes text of an enumeration that is text
    return cls(**values)


def _sample_delta(content: tuple[Any, ...]) -> SampleDelta:
    index, start, tokens, top_log_probs, kept_support, finish_reason, stop_reason = content
    return SampleDelta(
        index=index,
        start=start,
        tokens=GeneratedTokens.from_bytes(tokens),
        top_log_probs=top_log_probs,
        kept_support=kept_support,
        finish_reason=None if finish_reason is None else FinishReason(finish_reason),
        stop_reason=stop_reason,
    )
