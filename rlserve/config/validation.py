"""From plain values to a tree of frozen dataclasses, strictly, all problems at once.

pydantic checks keys and types, and calls each dataclass's own check of its ranges (``__post_init__``). It calls that
only where all keys of the dataclass are right, so what is wrong is put right and the whole checked again, until nothing
new is found: ranges are checked even where another key is wrong.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from rlserve.config.keys import (
    ABSENT,
    annotation_of,
    element_of,
    hints_of,
    join_key,
    named_of,
    nested_dataclasses,
    value_at,
    variants_of,
)
from rlserve.config.plain_values import placeholder, settle
from rlserve.config.wording import unknown_key, wrong_type
from rlserve.errors import ConfigurationError, Problem

ConfigT = TypeVar("ConfigT")


def validate(
    config_type: type[ConfigT], values: Mapping[Any, Any], spelling: Callable[[str], str | None] = lambda key: None
) -> tuple[ConfigT | None, tuple[Problem, ...]]:
    """Build ``config_type`` from nested plain data, or say everything that is wrong with it.

    Exactly one of the two results is empty: ``None``, or ``()``. Keys of problems are dotted, positions in lists
    included (``pool.slots.1.count``), as an override would spell them. Problems are in the order of the tree, unknown
    keys before its own. ``spelling`` tells how the value of a key was written, for numbers and truth values in the
    place of text; None where that is not known.
    """
    adapter: TypeAdapter[ConfigT] = _adapter(config_type)  # type: ignore[arg-type]  # mypy: no type is hashable
    mended = settle(config_type, values, "", spelling)
    problems: dict[str, Problem] = {}
    removed: set[str] = set()
    while True:
        try:
            # YAML's values are JSON's, and only from JSON does strict pydantic take a list for a tuple.
            config = adapter.validate_json(json.dumps(mended, default=repr), strict=True, extra="forbid")
        except ValidationError as error:
            found = list(_problems(config_type, error.errors(include_url=False), values, mended))
        else:
            break
        problems |= {problem.key: problem for problem in found if not _is_mended(problem.key, problems)}
        for problem in found:
            mended = _mend(config_type, mended, problem.key, removed)
    ordered = sorted(problems.values(), key=lambda problem: _position(config_type, problem.key))
    return (None if problems else config), tuple(ordered)


@cache
def _adapter(config_type: type[Any]) -> TypeAdapter[Any]:
    """Kept, since to build one takes a seventh of the time in which a whole configuration is loaded."""
    return TypeAdapter(config_type)


def _problems(
    root: type[Any], errors: Sequence[ErrorDetails], values: Mapping[Any, Any], mended: Any
) -> Iterator[Problem]:
    """pydantic's errors in our words; ``values`` are as they were given, ``mended`` as they were checked."""
    for error in errors:
        key, annotation = _locate(root, error["loc"])
        value = value_at(values, key)
        match error["type"]:
            case "value_error":
                cause = error["ctx"]["error"]
                assert isinstance(cause, ConfigurationError), f"{key}: {cause!r} is not of check_fields"
                yield from (Problem(join_key(key, problem.key), problem.message) for problem in cause.problems)
            case "json_invalid":
                yield Problem("", "holds half a surrogate pair (\\ud800 to \\udfff), which is no text")
            case "missing":
                yield Problem(key, "must be given")
            case "unexpected_keyword_argument":
                yield Problem(key, unknown_key(root, key, value_at(mended, key.rpartition(".")[0])))
            case "union_tag_invalid":
                tag_key = join_key(key, error["ctx"]["discriminator"].strip("'"))
                yield Problem(tag_key, wrong_type(annotation_of(root, tag_key), value_at(values, tag_key)))
            case _:
                # Of a union that may be a list, a list is one: what is wrong is said of its elements.
                if not (isinstance(value, list | tuple) and element_of(annotation) is not None):
                    yield Problem(key, wrong_type(annotation, value))


def _locate(root: type[Any], location: Sequence[int | str]) -> tuple[str, Any]:
    """The dotted key of pydantic's location and the type there; None for an unknown key."""
    key = ""
    annotation: Any = root
    for part in location:
        if (variants := variants_of(annotation)) is not None and part in variants.types:
            annotation = variants.types[str(part)]
        elif is_dataclass(annotation):
            key, annotation = join_key(key, part), hints_of(annotation).get(str(part))
        elif (element := element_of(annotation)) is not None and isinstance(part, int):
            key, annotation = join_key(key, part), element
        elif (named := named_of(annotation)) is not None:
            key, annotation = join_key(key, part), named
        elif element is None or not str(part).startswith("tuple["):  # pydantic's name for a member of a union
            break
    return key, annotation


def _mend(root: type[Any], values: Any, key: str, removed: set[str]) -> Any:
    """``values`` with something legal at ``key``: its default, or else any value; where neither will do, that goes for
    the key above. ``removed`` are the keys whose defaults have been tried."""
    annotation, value = annotation_of(root, key) if key else root, value_at(values, key)
    if annotation is None or (value is not ABSENT and key not in removed and _may_be_absent(root, key)):
        removed.add(key)
        return _changed(values, key, ABSENT)
    legal = placeholder(annotation)
    if value is ABSENT or value != legal:
        return _changed(values, key, legal)
    assert key, f"{root.__name__} refuses {legal}"
    return _mend(root, values, key.rpartition(".")[0], removed)


def _is_mended(key: str, known: Iterable[str]) -> bool:
    """Whether ``key``, or one above or under it, was wrong before: what stands there now is not the user's."""
    return any(not other or f"{key}.".startswith(f"{other}.") or f"{other}.".startswith(f"{key}.") for other in known)


def _may_be_absent(root: type[Any], key: str) -> bool:
    """Whether there is a default for the key, or no such key at all."""
    parent, _, name = key.rpartition(".")
    owners = nested_dataclasses(annotation_of(root, parent) if parent else root)
    found = [field for owner in owners for field in fields(owner) if field.name == name]
    return bool(owners) and not any(field.default is field.default_factory is MISSING for field in found)


def _changed(values: Any, key: str, value: Any) -> Any:
    """Nested plain values with ``value`` at a dotted key; :data:`ABSENT` takes the key away."""
    if not key:
        return value
    name, _, rest = key.partition(".")
    if isinstance(values, list):
        return [_changed(item, rest, value) if str(index) == name else item for index, item in enumerate(values)]
    changed = value if not rest else _changed(values.get(name, {}), rest, value)
    others = {other: item for other, item in values.items() if other != name}
    return others if changed is ABSENT else {**others, name: changed}


def _position(root: type[Any], key: str) -> tuple[int, ...]:
    """Where a key stands in the tree; what is unknown comes before what is not."""
    position, path = [], ""
    for part in key.split("."):
        owners = nested_dataclasses(annotation_of(root, path) if path else root)
        names = list(dict.fromkeys(name for owner in owners for name in hints_of(owner)))
        position.append(int(part) if part.isdecimal() else names.index(part) if part in names else -1)
        path = join_key(path, part)
    return tuple(position)
