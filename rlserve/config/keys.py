"""Dotted keys of the configuration: what stands under them, and of which type."""

from __future__ import annotations

import types
from collections.abc import Iterator, Mapping
from dataclasses import is_dataclass
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints


def join_key(parent: str, child: object) -> str:
    """``a.b`` and ``c`` to ``a.b.c``."""
    return f"{parent}.{child}" if parent else str(child)


def flatten(values: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Dotted keys and values of all leaves of nested mappings; a list is a leaf."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from ((join_key(name, key), leaf) for key, leaf in flatten(value))
        else:
            yield str(name), value


def annotation_of(root: type[Any], key: str) -> Any:
    """The type that a dotted key has in a tree of dataclasses, positions in lists included; None if there is none."""
    annotation: Any = root
    for part in key.split("."):
        element = _element_of(annotation) if part.isdecimal() else None
        choices = choices_of(annotation)
        owners = choices.members.values() if choices else [annotation] if is_dataclass(annotation) else []
        annotation = element or next((hints[part] for hints in map(get_type_hints, owners) if part in hints), None)
    return annotation


class Choices(NamedTuple):
    """Dataclasses of which one stands under a key."""

    key: str
    """The field that says which: a ``Literal`` of one text in each."""
    members: Mapping[str, Any]
    """The dataclasses by that text."""


def choices_of(annotation: Any) -> Choices | None:
    """The dataclasses of a union that are told apart by a field; None for any other type."""
    members = _members(annotation)
    if not members or not all(map(is_dataclass, members)):
        return None
    hints = [get_type_hints(member) for member in members]
    (key,) = (name for name in hints[0] if all(get_origin(each.get(name)) is Literal for each in hints))
    return Choices(key, {get_args(each[key])[0]: member for each, member in zip(hints, members, strict=True)})


def is_text(annotation: Any) -> bool:
    """Whether a key of this type takes any text."""
    return annotation is str or str in _members(annotation)


def is_text_list(annotation: Any) -> bool:
    """Whether a key of this type takes a list of texts."""
    return _element_of(annotation) is str


def is_list(annotation: Any) -> bool:
    """Whether a key of this type takes a list."""
    return _element_of(annotation) is not None


def _members(annotation: Any) -> tuple[Any, ...]:
    return get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else ()


def _element_of(annotation: Any) -> Any:
    """The type of a list's elements; None where no list can stand."""
    for member in (annotation, *_members(annotation)):
        if get_origin(member) is tuple:
            return get_args(member)[0]
    return None
