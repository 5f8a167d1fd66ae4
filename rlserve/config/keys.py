"""Dotted keys of the configuration: what stands under them, and of which type."""

from __future__ import annotations

import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, is_dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from pydantic import Discriminator

ABSENT = object()
"""In the place of a value that is not there."""


@dataclass(frozen=True, kw_only=True)
class Variants:
    """The dataclasses of a discriminated union; the first is the default."""

    discriminator: str
    """The key whose value says which one is meant: ``name``."""
    types: Mapping[str, type[Any]]
    """By that value."""

    @property
    def default(self) -> str:
        """The value of the discriminator where it is not given."""
        return next(iter(self.types))

    def chosen_by(self, values: Mapping[Any, Any]) -> type[Any] | None:
        """The variant that ``values`` are meant for; None where they name one that does not exist."""
        tag = values.get(self.discriminator, self.default)
        return self.types.get(tag) if isinstance(tag, str) else None


def join_key(parent: str, child: object) -> str:
    """``a.b`` and ``c`` to ``a.b.c``; either may be empty."""
    return f"{parent}.{child}" if parent and str(child) else parent or str(child)


def flatten(values: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Dotted keys and values of all leaves of nested mappings; a list is a leaf."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from ((join_key(name, key), leaf) for key, leaf in flatten(value))
        else:
            yield str(name), value


def value_at(values: Any, key: str) -> Any:
    """What stands at a dotted key of nested plain data, positions in lists included, or :data:`ABSENT`."""
    for part in key.split(".") if key else ():
        if isinstance(values, list | tuple) and part.isdecimal() and int(part) < len(values):
            values = values[int(part)]
        elif isinstance(values, Mapping):
            values = next((value for name, value in values.items() if str(name) == part), ABSENT)
        else:
            return ABSENT
    return values


def hints_of(cls: Any) -> Mapping[str, Any]:
    """The types of a dataclass's fields, in their order; discriminated unions keep their discriminator."""
    return get_type_hints(cls, include_extras=True)


def variants_of(annotation: Any) -> Variants | None:
    """The variants of a discriminated union; None for any other type."""
    if get_origin(annotation) is not Annotated:
        return None
    union, *extras = get_args(annotation)
    (name,) = (str(extra.discriminator) for extra in extras if isinstance(extra, Discriminator))
    tags = {get_args(hints_of(member)[name])[0]: member for member in get_args(union)}
    return Variants(discriminator=name, types=tags)


def nested_dataclasses(annotation: Any) -> tuple[type[Any], ...]:
    """The dataclasses whose keys stand directly under a key of this type: none, one, or all variants."""
    if variants := variants_of(annotation):
        return tuple(variants.types.values())
    return (annotation,) if is_dataclass(annotation) else ()  # type: ignore[return-value]


def annotation_of(root: type[Any], key: str) -> Any:
    """The type that a dotted key has in a tree of dataclasses; None if there is none.

    Positions in lists are parts of a key, and so are names of the user's own in a mapping of dataclasses.

    Of a key that several variants have it is that of the first.
    """
    annotation: Any = root
    for part in key.split("."):
        variants = variants_of(annotation)
        if variants is not None and part == variants.discriminator:
            annotation = Literal[tuple(variants.types)]
            continue
        hints = [hints_of(nested) for nested in nested_dataclasses(annotation)]
        element = element_of(annotation) if part.isdecimal() else named_of(annotation)
        annotation = element or next((found[part] for found in hints if part in found), None)
    return annotation


def is_text(annotation: Any) -> bool:
    """Whether a key of this type takes any text."""
    return str in members_of(annotation)


def is_text_list(annotation: Any) -> bool:
    """Whether a key of this type takes a list of texts."""
    return element_of(annotation) is str


def is_list(annotation: Any) -> bool:
    """Whether a key of this type takes a list."""
    return element_of(annotation) is not None


def members_of(annotation: Any) -> Sequence[Any]:
    """The members of a plain union; any other type is the only one."""
    return get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else (annotation,)


def element_of(annotation: Any) -> Any:
    """The type of a list's elements; None where no list can stand."""
    for member in members_of(annotation):
        if get_origin(member) is tuple:
            return get_args(member)[0]
    return None


def named_of(annotation: Any) -> Any:
    """The dataclass that stands under names of the user's own; None where none does."""
    value = get_args(annotation)[1] if get_origin(annotation) is dict else None
    return value if is_dataclass(value) else None
