"""Unions whose members are told apart by their ``type``: what is wrong is said of the member that is meant."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from pydantic import BeforeValidator, Discriminator
from pydantic_core import PydanticCustomError

_MAX_NAME_CHARS = 64


def by_type(default: str | None = None) -> Discriminator:
    """The member that a value is meant for: its tag is its ``type``, or ``default`` where it has none."""
    return Discriminator(lambda value: _type_of(value, default))


def known_type(names: Collection[str], *, default: str | None = None, hint: str = "") -> BeforeValidator:
    """Refuses a ``type`` that is none of some names, and says which it is.

    Args:
        default: of what has no ``type``.
        hint: why others cannot be had.
    """

    def check(value: Any) -> Any:
        kind = _type_of(value, default)
        if kind not in names:
            raise PydanticCustomError(
                "unknown_type",
                "type {type} cannot be had{hint}; there are {names}",
                {"type": repr(kind[:_MAX_NAME_CHARS]), "hint": hint, "names": ", ".join(names)},
            )
        return value

    return BeforeValidator(check)


def _type_of(value: Any, default: str | None) -> str:
    kind = value.get("type") if isinstance(value, dict) else getattr(value, "type", "")
    kind = default if kind is None else kind
    return kind if isinstance(kind, str) else ""


TEXT_OR_LIST = Discriminator(lambda value: "text" if isinstance(value, str) else "list")
"""For what may be a text or a list of parts, which are tagged so."""
