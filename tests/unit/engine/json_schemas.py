"""JSON schemas of the kinds that the public test suites of JSON Schema have, made by program."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import combinations, product
from typing import Any

Schema = dict[str, Any]

STRING: Schema = {"type": "string", "maxLength": 5}
INTEGER: Schema = {"type": "integer", "minimum": -9, "maximum": 99}
LEAVES: dict[str, Schema] = {
    "string": STRING,
    "integer": INTEGER,
    "boolean": {"type": "boolean"},
    "null": {"type": "null"},
    "enum": {"enum": ["red", "green", 3, None]},
}


def schemas() -> dict[str, Schema]:
    """By name."""
    found: dict[str, Schema] = {}
    for kind in (_types, _values, _strings, _numbers, _arrays, _objects, _references, _alternatives, _nested):
        for name, schema in kind():
            assert name not in found
            found[name] = schema
    return found


def _object(properties: Mapping[str, Any], **more: Any) -> Schema:
    return {"type": "object", "properties": dict(properties), "additionalProperties": False, **more}


def _types() -> Iterator[tuple[str, Schema]]:
    for name, leaf in LEAVES.items():
        yield f"type {name}", leaf
    for first, second in combinations(("string", "integer", "boolean", "null", "number"), 2):
        yield f"type {first} or {second}", {"type": [first, second], "maxLength": 4, "minimum": 0, "maximum": 50}


def _values() -> Iterator[tuple[str, Schema]]:
    constants = ("plain", 7, -2.5, True, None, [1, "two"], {"a": [None]}, 'quo"ted', "ünï", "", "a\\b\n")
    for constant in constants:
        yield f"const {constant!r}", {"const": constant}
    for length in range(2, len(constants) + 1):
        yield f"enum of {length}", {"enum": list(constants[:length])}


def _strings() -> Iterator[tuple[str, Schema]]:
    for shortest, length in product((0, 1, 3), (3, 5, 8)):
        yield f"length {shortest} to {length}", {"type": "string", "minLength": shortest, "maxLength": length}
    patterns = (
        "^[a-z]{2,4}$",
        "^[A-Z][a-z]*[0-9]$",
        "^(yes|no)$",
        r"^\d{3}-\d{4}$",
        "^a|b$",
        r"^\w+\s\w+$",
        "^[^x]{3}$",
    )
    for pattern in patterns:
        yield f"pattern {pattern}", {"type": "string", "pattern": pattern, "maxLength": 12}
    for text_format in ("date", "time", "date-time", "email", "ipv4", "ipv6", "uuid"):
        yield f"format {text_format}", {"type": "string", "format": text_format}


def _numbers() -> Iterator[tuple[str, Schema]]:
    for kind, low, high in product(("integer", "number"), (-20, 0, 5), (5, 7, 1000)):
        yield f"{kind} from {low} to {high}", {"type": kind, "minimum": low, "maximum": high}
    for low, high in ((-1, 1), (0, 10), (99, 101)):
        yield f"between {low} and {high}", {"type": "integer", "exclusiveMinimum": low, "exclusiveMaximum": high}
        yield f"number between {low} and {high}", {"type": "number", "exclusiveMinimum": low, "exclusiveMaximum": high}
    for factor in (2, 3, 10, 0.5):
        yield f"multiple of {factor}", {"type": "number", "multipleOf": factor, "minimum": 0, "maximum": 500}


def _arrays() -> Iterator[tuple[str, Schema]]:
    for (name, leaf), (fewest, most) in product(LEAVES.items(), ((0, 2), (2, 2), (1, 4))):
        yield f"{fewest} to {most} of {name}", {"type": "array", "items": leaf, "minItems": fewest, "maxItems": most}
    for first, second in combinations(LEAVES, 2):
        row = [LEAVES[first], LEAVES[second]]
        yield f"{first} then {second}", {"type": "array", "prefixItems": row, "items": False, "minItems": 2}
        yield f"{first} perhaps then {second}", {"type": "array", "prefixItems": row, "items": False}
    yield "none", {"type": "array", "maxItems": 0}


def _objects() -> Iterator[tuple[str, Schema]]:
    for first, second in combinations(LEAVES, 2):
        properties = {"a": LEAVES[first], "b": LEAVES[second]}
        yield f"object of {first} and {second}", _object(properties, required=["a", "b"])
        yield f"object of perhaps {first} and {second}", _object(properties, required=["b"])
        yield f"object of perhaps {first} and perhaps {second}", _object(properties)
    for name, leaf in LEAVES.items():
        few = {"minProperties": 1, "maxProperties": 2}
        yield f"any keys with {name}", {"type": "object", "additionalProperties": leaf, **few}
        by_pattern = {"^k[0-9]$": leaf}
        yield (
            f"keys like k1 with {name}",
            {
                "type": "object",
                "patternProperties": by_pattern,
                "additionalProperties": False,
            },
        )
    keys = ('quo"te', "dash-ed", "ünï", "", "a b")
    yield "strange keys", _object(dict.fromkeys(keys, INTEGER), required=list(keys))


def _references() -> Iterator[tuple[str, Schema]]:
    for name, leaf in LEAVES.items():
        reference = {"$ref": "#/$defs/leaf"}
        yield f"reference to {name}", {"$defs": {"leaf": leaf}, **reference}
        yield f"references to {name}", {"$defs": {"leaf": leaf}, **_object({"x": reference, "y": reference})}
    tree = _object({"value": INTEGER, "left": {"$ref": "#/$defs/tree"}}, required=["value"])
    yield "a tree", {"$defs": {"tree": tree}, "$ref": "#/$defs/tree"}
    yield "itself", _object({"next": {"anyOf": [{"$ref": "#"}, {"type": "null"}]}}, required=["next"])
    yield "definitions", {"definitions": {"n": INTEGER}, **_object({"n": {"$ref": "#/definitions/n"}})}


def _alternatives() -> Iterator[tuple[str, Schema]]:
    for first, second in combinations(("string", "integer", "boolean", "null"), 2):
        both = [LEAVES[first], LEAVES[second]]
        yield f"any of {first} and {second}", {"anyOf": both}
        yield f"one of {first} and {second}", {"oneOf": both}
    for size in (2, 3, 4):
        shapes = [_object({"kind": {"const": f"k{index}"}}, required=["kind"]) for index in range(size)]
        yield f"any of {size} objects", {"anyOf": shapes}
    yield "all of", {"allOf": [{"type": "string"}, {"maxLength": 4}, {"minLength": 2}]}
    parts = [{"type": "object", "properties": {key: INTEGER}, "required": [key]} for key in "ab"]
    yield "all of two objects", {"allOf": [*parts, {"properties": {"a": {}, "b": {}}, "additionalProperties": False}]}


def _nested() -> Iterator[tuple[str, Schema]]:
    for depth, (name, leaf) in product((2, 3, 4), LEAVES.items()):
        schema, as_list = leaf, leaf
        for _ in range(depth):
            schema = _object({"x": schema}, required=["x"])
            as_list = {"type": "array", "items": as_list, "minItems": 1, "maxItems": 1}
        yield f"{name} in {depth} objects", schema
        yield f"{name} in {depth} lists", as_list
    person = _object({"name": STRING, "age": INTEGER}, required=["name", "age"])
    team = {"type": "array", "items": person, "minItems": 1, "maxItems": 2}
    yield "a team", _object({"team": team, "lead": {"anyOf": [person, {"type": "null"}]}}, required=["team", "lead"])
