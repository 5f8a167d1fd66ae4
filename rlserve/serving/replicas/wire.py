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
from rlserve.engine.stats.metrics import Histogram
from rlserve.serving.replicas.messages import Abort, Beat, Message, News, Ready, Refused, Start, Submit

_TOKENS = 0
_CLASSES: tuple[type[Any], ...] = (
    *(Start, Submit, Abort, Ready, Refused, News, Beat),
    *(EngineConfig, Request, SamplingParams, StructuredOutput, RequestOutput, SampleOutput, RequestDelta, SampleDelta),
    Histogram,
)
"""That cross as the tuple of their fields, each under a code: its place here, after that of columns of tokens."""
_CODES = {cls: code for code, cls in enumerate(_CLASSES, start=1)}
_FIELDS = {cls: tuple(field.name for field in fields(cls)) for cls in _CLASSES}
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
    if cls is GeneratedTokens:
        return msgpack.ExtType(_TOKENS, value.to_bytes())
    content = tuple(getattr(value, name) for name in _FIELDS[cls])
    return msgpack.ExtType(_CODES[cls], msgpack.packb(content, default=_to_plain))


def _from_plain(code: int, data: bytes) -> Any:
    if code == _TOKENS:
        return GeneratedTokens.from_bytes(data)
    cls = _CLASSES[code - 1]
    content = msgpack.unpackb(data, ext_hook=_from_plain, use_list=False, strict_map_key=False)
    values = dict(zip(_FIELDS[cls], content, strict=True))
    if (reason := values.get("finish_reason")) is not None:
        values["finish_reason"] = FinishReason(reason)  # msgpack makes text of an enumeration that is text
    return cls(**values)
