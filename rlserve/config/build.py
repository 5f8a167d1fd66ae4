"""From plain values to a tree of frozen dataclasses, strictly, all problems at once.

Unknown keys are refused at every level, nothing is converted but what YAML spells in two ways (an integer for
a float, ``1e-5`` read as text for a float, a list for a tuple, ``name: 007`` read as a number) and one text where a
list of texts stands. Ranges are the ``__post_init__`` of each dataclass; they are checked even where another key of
the same dataclass is wrong.
"""

from __future__ import annotations

import math
import types
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from difflib import SequenceMatcher, get_close_matches
from itertools import chain
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from rlserve.config.keys import Choices, choices_of, join_key
from rlserve.errors import ConfigurationError, Problem

ConfigT = TypeVar("ConfigT")

_BAD = object()
"""In the place of a value that could not be built; its problem has been noted."""
_PLACEHOLDERS: dict[Any, Any] = {str: "placeholder", int: 1, float: 1.0, bool: False}
_KINDS: dict[Any, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    types.NoneType: "null",
}


def build(
    config_type: type[ConfigT], values: Mapping[Any, Any], spelling: Callable[[str], str | None] = lambda key: None
) -> tuple[ConfigT | None, tuple[Problem, ...]]:
    """Build ``config_type`` from nested plain data, or say everything that is wrong with it.

    Exactly one of the two results is empty: ``None``, or ``()``. Keys of problems are dotted, positions in lists
    included (``pool.slots.1.count``), as an override would spell them. ``spelling`` tells how the value of a key was
    written, for numbers and truth values in the place of text; None where that is not known.
    """
    builder = _Builder(config_type, spelling)
    config = builder.build_dataclass(config_type, values, "")
    return (None if builder.problems else config), tuple(builder.problems)


class _Builder:
    def __init__(self, root: type[Any], spelling: Callable[[str], str | None]) -> None:
        self.problems: list[Problem] = []
        self._spelling = spelling
        self._all_keys = tuple(_leaf_keys(root, ""))

    def build_dataclass(self, cls: Any, values: Any, key: str) -> Any:
        if not isinstance(values, Mapping):
            return self._refuse(key, f"must be {_describe(cls)}, got {_show(values)}")
        names = {field.name: field for field in fields(cls)}
        for unknown in (name for name in values if name not in names):
            self._refuse(join_key(key, unknown), self._unknown_key(key, str(unknown), tuple(names), values))
        hints = get_type_hints(cls)
        built: dict[str, Any] = {}
        for name, field in names.items():
            if name in values:
                built[name] = self._build_value(hints[name], values[name], join_key(key, name))
            elif _is_required(field):
                built[name] = self._refuse(join_key(key, name), "must be given")
        return self._construct(cls, names, hints, built, key)

    def _construct(
        self, cls: Any, names: Mapping[str, Field[Any]], hints: Mapping[str, Any], built: Mapping[str, Any], key: str
    ) -> Any:
        """Construct ``cls``, and so check its ranges; for that alone, something stands in for each bad value.

        It is the default, or a placeholder where there is none. For a required dataclass that is None: a
        ``__post_init__`` must not look into one.
        """
        bad = {name for name, value in built.items() if value is _BAD}
        arguments = {name: value for name, value in built.items() if name not in bad}
        arguments |= {name: _PLACEHOLDERS.get(hints[name]) for name in bad if _is_required(names[name])}
        try:
            instance = cls(**arguments)
        except ConfigurationError as error:
            for problem in error.problems:
                if problem.key not in bad:
                    self._refuse(join_key(key, problem.key), problem.message)
            return _BAD
        return _BAD if bad else instance

    def _build_value(self, annotation: Any, value: Any, key: str) -> Any:
        if choices := choices_of(annotation):
            return self._build_choice(choices, value, key)
        if is_dataclass(annotation):
            return self.build_dataclass(annotation, value, key)
        if get_origin(annotation) is tuple:
            return self._build_tuple(annotation, value, key)
        if get_origin(annotation) is dict:
            return self._build_mapping(value, key)
        if get_origin(annotation) in (Union, types.UnionType):
            for member in get_args(annotation):
                if _fits(member, value):
                    return self._build_value(member, value, key)
            if str in get_args(annotation) and isinstance(value, int | float):
                return self._build_value(str, value, key)
            return self._refuse(key, f"must be {_describe(annotation)}, got {_show(value)}")
        if annotation is str and isinstance(value, int | float):
            return self._spelling(key) or _show(value)
        converted = _scalar(annotation, value)
        if converted is _BAD:
            return self._refuse(key, f"must be {_describe(annotation)}, got {_show(value)}")
        return converted

    def _build_choice(self, choices: Choices, values: Any, key: str) -> Any:
        """One of several dataclasses, the first where nothing is said."""
        if not isinstance(values, Mapping):
            return self._refuse(key, f"must be a mapping of keys, got {_show(values)}")
        chosen = values.get(choices.key, next(iter(choices.members)))
        if not isinstance(chosen, str) or chosen not in choices.members:
            message = f"must be one of {', '.join(choices.members)}, got {_show(chosen)}"
            return self._refuse(join_key(key, choices.key), message)
        return self.build_dataclass(choices.members[chosen], values, key)

    def _build_tuple(self, annotation: Any, value: Any, key: str) -> Any:
        element, _ = get_args(annotation)
        if element is str and isinstance(value, str | int | float):
            return (self._build_value(str, value, key),)
        if not isinstance(value, list | tuple):
            return self._refuse(key, f"must be a list, got {_show(value)}")
        items = [self._build_value(element, item, join_key(key, index)) for index, item in enumerate(value)]
        return _BAD if any(item is _BAD for item in items) else tuple(items)

    def _build_mapping(self, value: Any, key: str) -> Any:
        """Keys of the user's own, with whatever values."""
        if not isinstance(value, Mapping):
            return self._refuse(key, f"must be a mapping of keys of your own, got {_show(value)}")
        return {str(name): item for name, item in value.items()}

    def _unknown_key(self, parent: str, name: str, valid: tuple[str, ...], given: Mapping[str, Any]) -> str:
        # Of two keys that are equally near, the one that is not there yet is meant.
        near = sorted(get_close_matches(name, valid), key=lambda key: (-_likeness(name, key), key in given))
        elsewhere = [key for key in self._all_keys if key.rpartition(".")[2] == name and key != join_key(parent, name)]
        if near or elsewhere:
            return f"unknown key, did you mean {join_key(parent, near[0]) if near else elsewhere[0]}?"
        return f"unknown key; valid keys: {', '.join(valid)}"

    def _refuse(self, key: str, message: str) -> object:
        self.problems.append(Problem(key, message))
        return _BAD


def _likeness(name: str, key: str) -> float:
    return SequenceMatcher(None, name, key).ratio()


def _leaf_keys(cls: Any, key: str) -> Iterator[str]:
    for name, annotation in get_type_hints(cls).items():
        if choices := choices_of(annotation):
            of_members = (_leaf_keys(member, join_key(key, name)) for member in choices.members.values())
            yield from dict.fromkeys(chain.from_iterable(of_members))
        elif is_dataclass(annotation):
            yield from _leaf_keys(annotation, join_key(key, name))
        else:
            yield join_key(key, name)


def _is_required(field: Field[Any]) -> bool:
    return field.default is MISSING and field.default_factory is MISSING


def _fits(annotation: Any, value: Any) -> bool:
    """Whether a member of a union is the one that ``value`` is meant for."""
    if is_dataclass(annotation):
        return isinstance(value, Mapping)
    if get_origin(annotation) is tuple:
        return isinstance(value, list | tuple)
    return _scalar(annotation, value) is not _BAD


def _scalar(annotation: Any, value: Any) -> Any:
    """``value`` as the scalar type, or ``_BAD``. A bool is no number, and a float no int."""
    if get_origin(annotation) is Literal:
        return value if value in get_args(annotation) else _BAD
    if annotation is types.NoneType:
        return None if value is None else _BAD
    if annotation is float:
        return _number(value)
    assert annotation in (bool, int, str), f"no rule for {annotation}: configurations hold plain types"
    return value if type(value) is annotation else _BAD


def _number(value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return _BAD
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return _BAD
    return number if math.isfinite(number) else _BAD


def _describe(annotation: Any) -> str:
    if is_dataclass(annotation):
        return "a mapping of keys"
    if get_origin(annotation) is tuple:
        return "a list"
    if get_origin(annotation) is Literal:
        choices = [str(choice) for choice in get_args(annotation)]
        return choices[0] if len(choices) == 1 else f"one of {', '.join(choices)}"
    if get_origin(annotation) in (Union, types.UnionType):
        return " or ".join(_describe(member) for member in get_args(annotation))
    return _KINDS[annotation]


def _show(value: Any) -> str:
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
