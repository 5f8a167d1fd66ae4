"""What form a client wants an answer to have: ``response_format``, and vLLM's ``structured_outputs``."""

from __future__ import annotations

import json
from typing import Any

from rlserve.engine.requests.structured_output import StructuredOutput
from rlserve.serving.protocol.errors import ApiError
from rlserve.serving.protocol.sampling import SamplingFields

_OLD_FIELDS = ("guided_json", "guided_regex", "guided_choice", "guided_grammar")
_KINDS = ("json", "json_object", "regex", "choice", "grammar")


def structured_output_of(asked: SamplingFields) -> StructuredOutput | None:
    """The form, or None where any text will do. Its own text is read when it is compiled.

    Raises:
        ApiError: it is none, or there are two.
    """
    for name in _OLD_FIELDS:
        if getattr(asked, name) is not None:
            kind = name.removeprefix("guided_")
            raise ApiError(400, f"{name}: write structured_outputs={{{kind!r}: …}} in its place", name)
    of_format, of_vllm = _of_response_format(asked.response_format), _of_structured_outputs(asked.structured_outputs)
    if of_format is not None and of_vllm is not None:
        raise ApiError(400, "response_format and structured_outputs: give one of them", "structured_outputs")
    return of_format or of_vllm


def _of_response_format(value: dict[str, Any] | None) -> StructuredOutput | None:
    if value is None or value.get("type") == "text":
        return None
    if value.get("type") == "json_object":
        return StructuredOutput(kind="json_object")
    described = value.get("json_schema")
    schema = described.get("schema") if isinstance(described, dict) else None
    if value.get("type") != "json_schema" or not isinstance(schema, dict):
        raise ApiError(
            400,
            "response_format must be {'type': 'text'}, {'type': 'json_object'} or "
            "{'type': 'json_schema', 'json_schema': {'name': …, 'schema': {…}}}",
            "response_format",
        )
    return StructuredOutput(kind="json_schema", text=json.dumps(schema))


def _of_structured_outputs(value: Any) -> StructuredOutput | None:
    if value is None:
        return None
    given = {kind: each for kind, each in value.items() if each is not None} if isinstance(value, dict) else {}
    if len(given) != 1 or not set(given) <= set(_KINDS):
        raise ApiError(
            400, f"structured_outputs must be an object with one of {', '.join(_KINDS)}", "structured_outputs"
        )
    ((kind, content),) = given.items()
    match kind, content:
        case "json", dict():
            return StructuredOutput(kind="json_schema", text=json.dumps(content))
        case "json", str():
            return StructuredOutput(kind="json_schema", text=content)
        case "json_object", True:
            return StructuredOutput(kind="json_object")
        case "choice", list():
            return StructuredOutput(kind="choice", text=json.dumps(content))
        case "regex", str():
            return StructuredOutput(kind="regex", text=content)
        case "grammar", str():
            return StructuredOutput(kind="grammar", text=content)
    raise ApiError(400, f"structured_outputs: {kind} has a value of the wrong type", "structured_outputs")
