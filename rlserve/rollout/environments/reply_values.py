"""Reading what an environment's ``step`` returned."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

from rlserve.errors import EnvironmentFailedError
from rlserve.rollout.environments.base import Reply
from rlserve.rollout.groups import Message
from rlserve.rollout.rewards.score_values import read_number

_KEYS = tuple(each.name for each in fields(Reply))
_WORDS = ("text", "messages", "token_ids")


def read_reply(value: Any) -> Reply:
    """The reply that a returned value stands for: a :class:`Reply`, or a mapping with some of its fields.

    Raises:
        EnvironmentFailedError: it stands for none; the message begins with a verb.
    """
    if isinstance(value, Reply):
        value = {key: getattr(value, key) for key in _KEYS}
    if not isinstance(value, Mapping):
        raise EnvironmentFailedError(f"must return a Reply or a dict, but returned {_show(value)}")
    unknown = next((key for key in value if key not in _KEYS), None)
    if unknown is not None:
        raise EnvironmentFailedError(f"returned a dict with {unknown!r}; a reply has {', '.join(_KEYS)}")
    over = value.get("over", False)
    if not isinstance(over, bool):
        raise EnvironmentFailedError(f"returned a reply whose 'over' must be True or False: {_show(over)}")
    said = [key for key in _WORDS if value.get(key) is not None]
    if not over and len(said) != 1:
        found = " and ".join(said) or "none of them"
        wanted = f"is not over and must have one of {', '.join(_WORDS)}"
        raise EnvironmentFailedError(f"returned a reply that {wanted}: it has {found}")
    return Reply(
        text=_read_text(value.get("text")),
        messages=_read_messages(value.get("messages")),
        token_ids=_read_token_ids(value.get("token_ids")),
        reward=_read_finite("reward", value.get("reward", 0.0)),
        over=over,
        metrics=_read_metrics(value.get("metrics") or {}),
    )


def read_last_reply(value: Any) -> Reply:
    """The reply that a value of ``truncate`` stands for, which is over; None gives nothing more.

    Raises:
        EnvironmentFailedError: it stands for none; the message begins with a verb.
    """
    if isinstance(value, Reply):
        return read_reply(replace(value, over=True))
    return read_reply({**value, "over": True} if isinstance(value, Mapping) else value or {"over": True})


def _read_text(value: Any) -> str | None:
    if value is not None and not isinstance(value, str):
        raise EnvironmentFailedError(f"returned a reply whose 'text' must be text: {_show(value)}")
    return None if value is None else str(value)


def _read_messages(value: Any) -> tuple[Message, ...] | None:
    if value is None:
        return None
    is_list = isinstance(value, list | tuple) and value
    if not is_list or not all(isinstance(message, Mapping) and "role" in message for message in value):
        wanted = "must be dicts with 'role' and 'content'"
        raise EnvironmentFailedError(f"returned a reply whose 'messages' {wanted}: {_show(value)}")
    try:
        plain: list[Message] = json.loads(json.dumps([dict(message) for message in value]))
    except (TypeError, ValueError):
        raise EnvironmentFailedError(f"returned a reply whose 'messages' must be plain data: {_show(value)}") from None
    return tuple(plain)


def _read_token_ids(value: Any) -> tuple[int, ...] | None:
    if value is None:
        return None
    try:
        numbers = tuple(int(token_id) for token_id in value)
        is_whole = all(number == token_id for number, token_id in zip(numbers, value, strict=True))
    except (TypeError, ValueError):
        is_whole = False
    if not is_whole:
        raise EnvironmentFailedError(f"returned a reply whose 'token_ids' must be whole numbers: {_show(value)}")
    return numbers


def _read_metrics(value: Any) -> dict[str, float]:
    if not isinstance(value, Mapping):
        raise EnvironmentFailedError(f"returned a reply whose 'metrics' must be a dict: {_show(value)}")
    return {str(name): _read_finite(f"metrics[{name!r}]", number) for name, number in value.items()}


def _read_finite(name: str, value: Any) -> float:
    number = read_number(value)
    if number is None or not math.isfinite(number):
        raise EnvironmentFailedError(f"returned a reply whose {name} must be a finite number: {_show(value)}")
    return number


def _show(value: Any) -> str:
    return f"{value!r:.80} ({type(value).__name__})"
