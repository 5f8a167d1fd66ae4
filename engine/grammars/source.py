"""From a structured output to the grammar that llguidance compiles. Pure.

What an automaton cannot be made of in reasonable time is refused here: counted repetitions inside each other multiply,
and ``(a{1000}){1000}`` would take seconds for one token.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from rlserve.engine.requests.structured_output import StructuredOutput
from rlserve.errors import UserError

MAX_REPETITIONS = 20_000
"""Most repetitions that counts inside each other may add up to, as a product."""
MAX_GRAMMAR_LINES = 2000
"""Terminals made of each other take time by the square of their number."""
WHITESPACE = r"\n?[ ]{0,32}"
"""Between the parts of JSON: compact, with spaces, or indented line by line. A bound, so that a model cannot go on
with blanks for ever."""
_COUNT = re.compile(r"\{(\d+)?(?:(,)(\d*))?\}")


def grammar_source(wanted: StructuredOutput) -> str:
    """What llguidance compiles.

    Raises:
        UserError: the text is no JSON where it must be, or has repetitions beyond ``MAX_REPETITIONS``.
    """
    from llguidance import LLMatcher, grammar_from

    match wanted.kind:
        case "json_object":
            return _of_schema({"type": "object"})
        case "json_schema":
            return _of_schema(_parsed(wanted.text))
        case "regex":
            _check_repetitions(wanted.text)
            return LLMatcher.grammar_from_regex(wanted.text)
        case "choice":
            # One terminal: the parser takes few rules at once, and the lexer any number of texts.
            alternatives = " | ".join(json.dumps(choice) for choice in _choices(wanted.text))
            return LLMatcher.grammar_from_lark(f"start: CHOICE\nCHOICE: {alternatives}")
        case "grammar":
            _check_repetitions(wanted.text)
            if (num_lines := wanted.text.count("\n") + 1) > MAX_GRAMMAR_LINES:
                raise UserError(f"the grammar has {num_lines} lines, at most {MAX_GRAMMAR_LINES} are possible")
            return grammar_from("grammar", wanted.text)


def num_repetitions(pattern: str) -> int:
    """The largest product of counts of a regular expression that lie inside each other: 12 for ``(a{3}b){4}``. Also
    of a text that has regular expressions in it, as a grammar has; counts behind each other are not multiplied."""
    largest_of = [1]
    """For each group that is open, the largest product in it so far."""
    last, place = 1, 0
    """``last``: of what a count that comes next would repeat."""
    while place < len(pattern):
        character = pattern[place]
        count = _COUNT.match(pattern, place) if character == "{" else None
        if count is not None:
            last *= int(count[3] or count[1] or 1)
            largest_of[-1] = max(largest_of[-1], last)
            place = count.end()
            continue
        last = 1
        if character == "[":
            place = _end_of_class(pattern, place)
        elif character == "(":
            largest_of.append(1)
        elif character == ")" and len(largest_of) > 1:
            last = largest_of.pop()
            largest_of[-1] = max(largest_of[-1], last)
        place += 2 if character == "\\" else 1
    return max(largest_of)


def _end_of_class(pattern: str, start: int) -> int:
    """The place of the bracket that ends a class of characters; ``start`` if nothing ends it."""
    place = start + 1
    while place < len(pattern) and (pattern[place] != "]" or place == start + 1):
        place += 2 if pattern[place] == "\\" else 1
    return place if place < len(pattern) else start


def _check_repetitions(pattern: str) -> None:
    found = num_repetitions(pattern)
    if found > MAX_REPETITIONS:
        raise UserError(f"repetitions inside each other come to {found}, at most {MAX_REPETITIONS} are possible")


def _of_schema(schema: dict[str, Any]) -> str:
    from llguidance import LLMatcher

    for pattern in _patterns(schema):
        _check_repetitions(pattern)
    options = {"whitespace_pattern": WHITESPACE, "whitespace_flexible": True, "lenient": False, "coerce_one_of": False}
    return LLMatcher.grammar_from_json_schema(json.dumps(schema), overrides=options)  # type: ignore[arg-type]


def _patterns(schema: Any) -> Iterator[str]:
    """All regular expressions of a schema, and other texts that stand where one could."""
    left = [schema]
    while left:
        value = left.pop()
        if isinstance(value, dict):
            if isinstance(pattern := value.get("pattern"), str):
                yield pattern
            if isinstance(by_pattern := value.get("patternProperties"), dict):
                yield from by_pattern
            left += value.values()
        elif isinstance(value, list):
            left += value


def _parsed(text: str) -> dict[str, Any]:
    try:
        schema = json.loads(text)
    except ValueError as error:
        raise UserError(f"the JSON schema is no JSON: {error}") from error
    if not isinstance(schema, dict):
        raise UserError(f"the JSON schema must be an object, got {text[:40]}")
    return schema


def _choices(text: str) -> list[str]:
    try:
        choices = json.loads(text)
    except ValueError as error:
        raise UserError(f"the texts to choose from must be a JSON list: {error}") from error
    if not isinstance(choices, list) or not choices or not all(isinstance(choice, str) for choice in choices):
        raise UserError(f"the texts to choose from must be a JSON list of strings, got {text[:40]}")
    return choices
