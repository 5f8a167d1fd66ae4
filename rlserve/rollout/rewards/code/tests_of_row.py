"""Reading the tests of a row, in the shapes that public data sets have.

===============================================================  ====================================================
``["assert f(2) == 4", …]`` or one text of Python                asserts, as in MBPP; checks that call ``f``
``[{"input": "2\\n", "output": "4\\n"}, …]``                       what the program reads, and must print
``{"inputs": ["2\\n", …], "outputs": ["4\\n", …]}``                the same, as in APPS and TACO
any of these as JSON in a text                                   the same
===============================================================  ====================================================
"""

from __future__ import annotations

import ast
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


class NoTestsError(Exception):
    """What stands in the row is no tests; the message says why."""


@dataclass(frozen=True, kw_only=True)
class Asserts:
    """Pieces of Python that raise where the program's functions do not do what they should."""

    texts: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class InputOutput:
    """An input of a program, and what it must print."""

    input: str
    output: str


Tests = Asserts | tuple[InputOutput, ...]


def read_tests(value: Any) -> Tests:
    """The tests that a value of the data stands for.

    Raises:
        NoTestsError: it has another shape, or there are none.
    """
    if isinstance(value, str):
        value = _from_text(value)
    if isinstance(value, Mapping) and {"inputs", "outputs"} <= set(value):
        inputs, outputs = value["inputs"], value["outputs"]
        if not isinstance(inputs, list) or not isinstance(outputs, list) or len(inputs) != len(outputs):
            raise NoTestsError('"inputs" and "outputs" must be lists of the same length')
        value = [{"input": each, "output": output} for each, output in zip(inputs, outputs, strict=True)]
    if not isinstance(value, list) or not value:
        raise NoTestsError(f"must be a list of tests, or an object with inputs and outputs, but is {value!r:.80}")
    if all(isinstance(test, str) for test in value):
        return Asserts(texts=tuple(_checked(test) for test in value))
    return tuple(_input_output(test) for test in value)


def _from_text(text: str) -> Any:
    try:
        value = json.loads(text)
    except ValueError:
        return [text]
    return value if isinstance(value, list | dict) else [text]


def _checked(text: str) -> str:
    try:
        ast.parse(text)
    except (SyntaxError, ValueError) as error:
        raise NoTestsError(f"is no Python ({error}): {text!r:.80}") from None
    return text


def _input_output(test: Any) -> InputOutput:
    if (
        not isinstance(test, Mapping)
        or not isinstance(test.get("input"), str)
        or not isinstance(test.get("output"), str)
    ):
        raise NoTestsError(f'must be an assert, or texts under "input" and "output", but is {test!r:.80}')
    return InputOutput(input=test["input"], output=test["output"])
