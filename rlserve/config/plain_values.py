"""Plain values in the one spelling that the types of the tree have, before they are checked.

YAML and the command line spell some things in two ways: ``1e-5`` may be text where a number stands, ``name: 007`` a
number where a text does, and one text may stand where a list of texts does. Nothing else is converted; what does not
fit is left for the check to refuse.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, Literal, get_args, get_origin

from rlserve.config.keys import (
    element_of,
    hints_of,
    is_text,
    is_text_list,
    join_key,
    members_of,
    named_of,
    variants_of,
)
from rlserve.config.wording import show

_UNFIT: dict[str, Any] = {}
"""In the place of what JSON cannot hold: a mapping, which no scalar and no list is."""
_PLACEHOLDERS: dict[Any, Any] = {str: "placeholder", int: 1, float: 1.0, bool: False}


def settle(annotation: Any, value: Any, key: str, spelling: Callable[[str], str | None]) -> Any:
    """``value``, which stands at ``key``, as JSON spells what ``annotation`` wants.

    ``spelling`` tells how the value of a key was written, for numbers and truth values in the place of text; None
    where that is not known. A discriminated union without its discriminator gets that of its default.
    """
    if (variants := variants_of(annotation)) is not None and isinstance(value, Mapping):
        chosen = variants.chosen_by(value)
        value = {variants.discriminator: variants.default, **value}
        return value if chosen is None else settle(chosen, value, key, spelling)
    if is_dataclass(annotation) and isinstance(value, Mapping):
        hints = hints_of(annotation)
        return {
            str(name): settle(hints[name], item, join_key(key, name), spelling) if name in hints else item
            for name, item in value.items()
        }
    if (named := named_of(annotation)) is not None and isinstance(value, Mapping):
        return {str(name): settle(named, item, join_key(key, name), spelling) for name, item in value.items()}
    if is_text_list(annotation) and isinstance(value, str | int | float):
        return [settle(str, value, key, spelling)]
    if (element := element_of(annotation)) is not None and isinstance(value, list | tuple):
        return [settle(element, item, join_key(key, index), spelling) for index, item in enumerate(value)]
    return _settle_scalar(annotation, value, key, spelling)


def placeholder(annotation: Any) -> Any:
    """Any value that a key of this type may have, in the place of one that may not stand there."""
    if (variants := variants_of(annotation)) is not None:
        return {variants.discriminator: variants.default}
    if is_dataclass(annotation):
        hints = hints_of(annotation)
        required = (field.name for field in fields(annotation) if field.default is field.default_factory is MISSING)
        return {name: placeholder(hints[name]) for name in required}
    member = members_of(annotation)[0]
    if get_origin(member) is Literal:
        return get_args(member)[0]
    return {tuple: [], dict: {}}.get(get_origin(member), _PLACEHOLDERS.get(member))


def _settle_scalar(annotation: Any, value: Any, key: str, spelling: Callable[[str], str | None]) -> Any:
    members = members_of(annotation)
    if isinstance(value, int | float):
        if is_text(annotation) and type(value) not in members:
            return spelling(key) or show(value)
        # Text is no number: what is infinite, or too large for a float, is refused.
        return value if float not in members or _is_finite(value) else show(value)
    if isinstance(value, str):
        return _settle_text(members, value)
    if value is None or isinstance(value, list | tuple) or get_origin(annotation) is dict:
        return value
    return value if isinstance(value, Mapping) else _UNFIT


def _settle_text(members: Any, text: str) -> Any:
    if any(0xD800 <= ord(character) < 0xE000 for character in text):  # half a pair: no encoding of Unicode has it
        return _UNFIT
    if float not in members or text in [choice for member in members for choice in get_args(member)]:
        return text
    number = _as_number(text)
    return text if number is None else number


def _as_number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _is_finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number beyond any float
        return False
