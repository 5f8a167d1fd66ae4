"""From a row to prompt and answer: where they stand in it, and what may stand there."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from rlserve.rollout.dataset.base import BadRowError, Number, as_plain
from rlserve.rollout.dataset.json_text import described
from rlserve.rollout.groups import Answer, Message

_MAX_NAMES = 20
"""Most columns that a message lists."""
_MISSING = object()


def find(row: Mapping[str, Any], field: str, key: str) -> Any:
    """The value of a column, or of a field of a nested one (``reward_model.ground_truth``). A column whose name has
    the dots in it comes first. ``key`` is the configuration's.

    Raises:
        BadRowError: there is none.
    """
    value = _find(row, field)
    if value is _MISSING:
        names = list(_names(row))
        shown = ", ".join(map(repr, names[:_MAX_NAMES])) + (", …" if len(names) > _MAX_NAMES else "")
        remedy = " (null where there is none)" if key == "answer_field" else ""
        raise BadRowError(f"has no {field!r}, only {shown or 'an empty object'}; set data.{key} to one of them{remedy}")
    return value


def as_prompt(value: Any, field: str, *, apply_chat_template: bool) -> str | tuple[Message, ...]:
    """Text, or a conversation where a chat template will render it.

    Raises:
        BadRowError: it is neither, is empty, or has half of a surrogate pair in it.
    """
    if isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
        if not apply_chat_template:
            raise BadRowError(f"{field!r} is a list of chat messages: set data.apply_chat_template=true")
        return tuple(_as_message(item, f"{field}.{number}") for number, item in enumerate(value))
    if not isinstance(value, str):
        raise BadRowError(f"{field!r} must be text or a list of chat messages, got {described(value)}")
    if not value.strip():
        raise BadRowError(f"{field!r} is empty")
    _check_encodable(value, field)
    return value


def as_answer(value: Any, field: str) -> Answer:
    """What the reward is given: text as it is, a number as it is spelled, true and false as JSON writes them, lists
    and dicts as plain data.

    Raises:
        BadRowError: it is bytes, has a number in it that is none, or half of a surrogate pair.
    """
    _check_encodable(value, field)
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Number):
        return value.text
    plain: Answer = as_plain(value)
    return plain


def _as_message(value: dict[str, Any], where: str) -> Message:
    role, content = value.get("role"), value.get("content")
    if not isinstance(role, str) or not role:
        raise BadRowError(f"{where!r} must have a 'role' of text, got {described(role)}")
    calls_tools = bool(value.get("tool_calls"))
    if not isinstance(content, str | list) and not (content is None and calls_tools):
        raise BadRowError(f"{where!r} must have a 'content' of text, got {described(content)}")
    _check_encodable(value, where)
    # Parquet has every field in every message, absent ones as null, which templates take for given.
    return {name: as_plain(item) for name, item in value.items() if item is not None or name == "content"}


def _check_encodable(value: Any, where: str) -> None:
    """What cannot be written as UTF-8 or JSON would be found by the tokenizer or the reward in mid-run."""
    if isinstance(value, str):
        try:
            value.encode("utf-8")
        except UnicodeEncodeError as error:
            half = f"\\u{ord(value[error.start]):04x}"
            raise BadRowError(
                f"{where!r} has half of a surrogate pair, {half}, at character {error.start}: no text holds it; "
                f"take it out"
            ) from error
    elif isinstance(value, Number):
        if not value.text[-1].isdigit() and not math.isfinite(value.value):  # 1e999 is a spelling, NaN is none
            raise BadRowError(f"{where!r} is {value.text}, which is no number: write null where there is none")
    elif isinstance(value, bytes):
        raise BadRowError(f"{where!r} must be text, a number, a list or an object, got {described(value)}")
    elif isinstance(value, list):
        for number, item in enumerate(value):
            _check_encodable(item, f"{where}.{number}")
    elif isinstance(value, dict):
        for name, item in value.items():
            _check_encodable(name, where)
            _check_encodable(item, f"{where}.{name}")


def _find(row: Mapping[str, Any], field: str) -> Any:
    if field in row:
        return row[field]
    heads = [place for place, character in enumerate(field) if character == "."]
    for place in heads:
        nested = row.get(field[:place])
        if isinstance(nested, dict) and (value := _find(nested, field[place + 1 :])) is not _MISSING:
            return value
    return _MISSING


def _names(row: Mapping[str, Any]) -> Iterator[str]:
    for name, value in row.items():
        yield name
        if isinstance(value, dict):
            yield from (f"{name}.{nested}" for nested in value)
