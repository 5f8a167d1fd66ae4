"""Reading JSON without changing it: numbers keep their spelling, and nothing is taken that JSON leaves open."""

from __future__ import annotations

import json
import reprlib
from typing import Any

from rlserve.rollout.dataset.base import BadRowError, Number


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise BadRowError(f"has {twice!r} twice in one object")
    return result


DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_int=Number, parse_float=Number, parse_constant=Number)


def decode_utf8(text: bytes) -> str:
    """
    Raises:
        BadRowError: ``text`` is not UTF-8.
    """
    try:
        return text.decode("utf-8")
    except UnicodeDecodeError as error:
        raise BadRowError(
            f"not valid UTF-8: byte 0x{text[error.start]:02x} after {error.start} bytes; write the file as UTF-8"
        ) from error


def parse_object(text: str) -> dict[str, Any]:
    """The JSON object that ``text`` is.

    Raises:
        BadRowError: it is no JSON, or another value, or has a key twice.
    """
    value = parse(text)
    if not isinstance(value, dict):
        raise BadRowError(f"must be a JSON object, got {described(value)}")
    return value


def parse(text: str) -> Any:
    """The JSON value that ``text`` is.

    Raises:
        BadRowError: it is no JSON, or an object in it has a key twice.
    """
    try:
        return DECODER.decode(text)
    except json.JSONDecodeError as error:
        raise BadRowError(f"not valid JSON: {error.msg} at column {error.colno}") from error
    except RecursionError as error:
        raise BadRowError("not valid JSON: nested too deeply") from error


def described(value: Any) -> str:
    """A value as a message shows it: its kind as JSON calls it, and the value, short."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Number):
        return f"the number {value.text[:30]}"
    kinds: dict[type, str] = {str: "text", list: "a list", dict: "an object", bytes: "bytes"}
    return f"{kinds.get(type(value), type(value).__name__)}: {reprlib.repr(value)}"
