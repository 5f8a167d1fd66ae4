"""What is wrong with a key or a value, in words."""

from __future__ import annotations

import types
from collections.abc import Iterator, Mapping
from dataclasses import is_dataclass
from difflib import SequenceMatcher, get_close_matches
from typing import Any, Literal, get_args, get_origin

from rlserve.config.keys import Variants, annotation_of, hints_of, join_key, members_of, nested_dataclasses, variants_of

_KINDS: dict[Any, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    types.NoneType: "null",
}


def wrong_type(annotation: Any, value: Any) -> str:
    """That ``value`` cannot stand where the type is ``annotation``."""
    return f"must be {_describe(annotation)}, got {show(value)}"


def unknown_key(root: type[Any], key: str, given: Mapping[Any, Any]) -> str:
    """That there is no such key, and what may have been meant; ``given`` stands beside it."""
    parent, _, name = key.rpartition(".")
    annotation = annotation_of(root, parent) if parent else root
    variants = variants_of(annotation)
    chosen = annotation if variants is None else variants.chosen_by(given)
    valid = tuple(hints_of(chosen)) if chosen is not None else ()
    if variants is not None and any(name in hints_of(variant) for variant in variants.types.values()):
        return _key_of_another(variants, parent, name, given, valid)
    # Of two keys that are equally near, the one that is not there yet is meant.
    near = sorted(get_close_matches(name, valid), key=lambda key: (-_likeness(name, key), key in given))
    elsewhere = [key for key in _leaf_keys(root, "") if key.rpartition(".")[2] == name]
    if near or elsewhere:
        return f"unknown key, did you mean {join_key(parent, near[0]) if near else elsewhere[0]}?"
    return f"unknown key; valid keys: {', '.join(valid)}"


def show(value: Any) -> str:
    """A value as YAML spells it, short."""
    if isinstance(value, Mapping):
        return "a mapping"
    if isinstance(value, list | tuple):
        return "a list"
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    return repr(value)


def _key_of_another(
    variants: Variants, parent: str, name: str, given: Mapping[Any, Any], valid: tuple[str, ...]
) -> str:
    discriminator = join_key(parent, variants.discriminator)
    chosen = given.get(variants.discriminator, variants.default)
    having = [f"{discriminator}={tag}" for tag, variant in variants.types.items() if name in hints_of(variant)]
    verb = "has" if len(having) == 1 else "have"
    return (
        f"{discriminator}={chosen} has no such key, {' and '.join(having)} {verb}; keys of {chosen}: {', '.join(valid)}"
    )


def _likeness(name: str, key: str) -> float:
    return SequenceMatcher(None, name, key).ratio()


def _leaf_keys(cls: Any, key: str) -> Iterator[str]:
    for name, annotation in hints_of(cls).items():
        nested = nested_dataclasses(annotation)
        for dataclass in nested:
            yield from _leaf_keys(dataclass, join_key(key, name))
        if not nested:
            yield join_key(key, name)


def _describe(annotation: Any) -> str:
    if is_dataclass(annotation) or variants_of(annotation) is not None:
        return "a mapping of keys"
    if get_origin(annotation) is tuple:
        return "a list"
    if get_origin(annotation) is dict:
        return "a mapping of keys of your own"
    if get_origin(annotation) is Literal:
        choices = [str(choice) for choice in get_args(annotation)]
        return choices[0] if len(choices) == 1 else f"one of {', '.join(choices)}"
    members = members_of(annotation)
    return " or ".join(map(_describe, members)) if len(members) > 1 else _KINDS[annotation]
