"""The OpenAPI document: what FastAPI finds out by itself, and what it cannot know.

Bodies are read by the routes themselves, within limits, and many values are checked later, against the configuration
and the model. The document says all the same what may be sent here: ranges are those of this server. Each operation has
the errors that the gate and the reading of bodies can answer with, so a route names only its own answer, with
:func:`takes` and :func:`gives`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from rlserve.engine.requests.validation import (
    MAX_LOGIT_BIAS,
    MAX_PENALTY,
    MAX_STOP_TOKEN_IDS,
    MAX_TEMPERATURE,
    REPETITION_PENALTIES,
)
from rlserve.serving.config import LimitsConfig
from rlserve.serving.front.error_shapes import MESSAGES_PATHS, TGI_PATHS
from rlserve.serving.front.gate import OPEN_PATHS
from rlserve.serving.protocol.answer_schemas import ErrorAnswer, TgiErrorAnswer
from rlserve.serving.protocol.message_schemas import MessagesErrorAnswer
from rlserve.serving.protocol.sampling import MAX_LENGTH_PENALTY

_TEMPLATE = "#/components/schemas/{model}"
_OF_ALL = {400: "a parameter is wrong"}
_WITHOUT_KEYS = {403: "the host is not answered"}
_OF_KEYS = {401: "the API key is wrong or missing", 403: "the API key has not the role that this needs"}
_OF_LIMITS = {429: "the API key has had all of this minute: Retry-After says when there is more"}
_OF_PATHS = {404: "there is no such thing"}
_OF_BODIES = {
    404: "there is no such model",
    408: "the body took too long",
    413: "the body is too large",
    415: "the body is not application/json",
    422: "a parameter is wrong",
}
_OF_TGI = {424: "the answer was refused for its text"}
"""As its clients know an answer that cannot be had: it has no other end for it."""
_NOT_READY = {503: "not now: Retry-After, where it can be told, says when"}
_RETRY_AFTER = {"Retry-After": {"description": "Seconds", "schema": {"type": "integer", "minimum": 0}}}
_WAITS = (429, 503)
"""That tell when to come again."""
_EVENT = {"type": "object", "properties": {"data": {"type": "string"}}, "required": ["data"]}
_ERRORS = (ErrorAnswer, TgiErrorAnswer, MessagesErrorAnswer)
_KEY = "key"
_ANY = "any"
"""The type of values of which pydantic says nothing."""
_NOT_HAD = ("guided_json", "guided_regex", "guided_choice", "guided_grammar", "reasoning_effort")
_RESPONSE_FORMATS = [
    {"properties": {"type": {"enum": ["text", "json_object"]}}, "required": ["type"]},
    {
        "properties": {
            "type": {"const": "json_schema"},
            "json_schema": {"type": "object", "properties": {"schema": {"type": "object"}}, "required": ["schema"]},
        },
        "required": ["type", "json_schema"],
    },
]


@dataclass(frozen=True, kw_only=True)
class KeyRules:
    """What the gate asks of the application's clients."""

    has_keys: bool
    has_limits: bool
    """Whether a key may ask for only so much in a minute."""


def takes(*models: type[BaseModel]) -> dict[str, Any]:
    """What a route's description says of its body: one of these."""
    content = {"application/json": {"schema": _one_of(models)}}
    return {"requestBody": {"required": True, "content": content}}


def gives(*models: type[BaseModel], streams: bool = False) -> dict[str, Any]:
    """What it says of its answer: JSON that is one of these, a stream of events, or either."""
    content: dict[str, Any] = {"application/json": {"schema": _one_of(models)}} if models else {}
    if streams:
        content["text/event-stream"] = {"schema": _EVENT}
    return {"responses": {"200": {"description": "The answer", "content": content}}}


def describe(
    app: FastAPI,
    *,
    bodies: Sequence[type[BaseModel]],
    answers: Sequence[type[BaseModel]],
    limits: LimitsConfig,
    vocab_size: int,
    key_rules: KeyRules,
) -> dict[str, Any]:
    """The document of an application.

    Args:
        bodies: that :func:`takes` was told of.
        answers: that :func:`gives` was told of.
        limits: of this server.
        vocab_size: of its model.
        key_rules: of its gate.
    """
    document = get_openapi(title=app.title, version=app.version, routes=app.routes, servers=app.servers or None)
    ranges = _ranges(limits, vocab_size)
    of_bodies = _schemas(bodies)
    for model, schema in of_bodies.items():
        for name, field in schema.get("properties", {}).items():
            _narrow(field, ranges.get(f"{model}.{name}", ranges.get(name, {})))
    # What FastAPI puts there itself is the shape of its own errors, which no error has here.
    document["components"] = {"schemas": {**_schemas((*answers, *_ERRORS)), **of_bodies}}
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            operation["responses"] = {**_kept(operation["responses"]), **_errors(path, method, operation, key_rules)}
            if key_rules.has_keys:
                # The gate lets probes in without one.
                operation["security"] = [{_KEY: []}, *([{}] if path in OPEN_PATHS else [])]
    if key_rules.has_keys:
        document["components"]["securitySchemes"] = {_KEY: {"type": "http", "scheme": "bearer"}}
    return document


def _one_of(models: Sequence[type[BaseModel]]) -> dict[str, Any]:
    references = [_reference(model) for model in models]
    return {"anyOf": references} if len(references) > 1 else references[0]


def _reference(model: type[BaseModel]) -> dict[str, str]:
    return {"$ref": _TEMPLATE.format(model=model.__name__)}


def _schemas(models: Sequence[type[BaseModel]]) -> dict[str, dict[str, Any]]:
    """Of models and of all that is in them, by name."""
    _, found = models_json_schema([(model, "validation") for model in models], ref_template=_TEMPLATE)
    schemas: dict[str, dict[str, Any]] = found["$defs"]
    return schemas


def _kept(responses: Mapping[str, Any]) -> dict[str, Any]:
    return {status: answer for status, answer in responses.items() if status != "422"}


def _errors(path: str, method: str, operation: Mapping[str, Any], key_rules: KeyRules) -> dict[str, Any]:
    statuses = _OF_ALL | _NOT_READY | (_OF_KEYS if key_rules.has_keys else _WITHOUT_KEYS)
    if key_rules.has_limits and method == "post":
        statuses |= _OF_LIMITS
    if "{" in path:
        statuses |= _OF_PATHS
    if "requestBody" in operation:
        statuses |= _OF_BODIES
    gate_only, of_route = _reference(ErrorAnswer), _reference(TgiErrorAnswer)
    if path in TGI_PATHS:
        statuses |= _OF_TGI
        schema: dict[str, Any] = {"anyOf": [of_route, gate_only]}
    else:
        schema = _reference(MessagesErrorAnswer) if path in MESSAGES_PATHS else gate_only
        statuses = {status: text for status, text in statuses.items() if status != 422}
    content = {"application/json": {"schema": schema}}
    return {
        str(status): {
            "description": text,
            **({"headers": _RETRY_AFTER} if status in _WAITS else {}),
            "content": content,
        }
        for status, text in statuses.items()
    }


def _ranges(limits: LimitsConfig, vocab_size: int) -> dict[str, dict[str, Any]]:
    """By the name of a field, or of model and field: what JSON Schema can say of its values, by their type."""
    token = {"type": "integer", "minimum": 0, "maximum": vocab_size - 1}
    num_logprobs = {"integer": {"minimum": 0, "maximum": limits.max_logprobs}}
    least = -1 if vocab_size <= limits.max_logprobs else 0  # -1 is the whole vocabulary
    num_or_all = {"integer": {"minimum": least, "maximum": limits.max_logprobs}}
    penalty = {"number": {"minimum": -MAX_PENALTY, "maximum": MAX_PENALTY}}
    stop_text = {"minLength": 1, "maxLength": limits.max_stop_chars}
    texts = {"items": {"type": "string", **stop_text}, "maxItems": limits.max_stop}
    return {
        "n": {"integer": {"minimum": 1, "maximum": limits.max_n}},
        "max_tokens": {"integer": {"minimum": 0}},
        "max_completion_tokens": {"integer": {"minimum": 1}},
        "max_new_tokens": {"integer": {"minimum": 1}},
        "min_tokens": {"integer": {"minimum": 0}},
        "temperature": {"number": {"minimum": 0, "maximum": MAX_TEMPERATURE}},
        "top_p": {"number": {"exclusiveMinimum": 0, "maximum": 1}},
        "min_p": {"number": {"minimum": 0, "maximum": 1}},
        "top_k": {"integer": {"minimum": -1, "exclusiveMaximum": 2**31}},
        "seed": {"integer": {"minimum": -(2**63), "exclusiveMaximum": 2**64}},
        "priority": {"integer": {"minimum": -(2**31), "exclusiveMaximum": 2**31}},
        "presence_penalty": penalty,
        "frequency_penalty": penalty,
        "repetition_penalty": {
            "number": {"minimum": REPETITION_PENALTIES[0], "maximum": REPETITION_PENALTIES[1]},
        },
        "stop": {"string": stop_text, "array": texts},
        "stop_sequences": {"array": texts},
        "stop_token_ids": {"array": {"items": token, "maxItems": MAX_STOP_TOKEN_IDS}},
        "allowed_token_ids": {"array": {"items": token}},
        "tokens": {"array": {"items": token}},
        "logit_bias": {
            "object": {
                "additionalProperties": {"type": "number", "minimum": -MAX_LOGIT_BIAS, "maximum": MAX_LOGIT_BIAS},
                "propertyNames": {"pattern": "^[0-9]+$"},
            }
        },
        "logprobs": num_or_all,
        "top_logprobs": num_logprobs,
        "ChatRequest.top_logprobs": num_or_all,
        "BatchChatRequest.top_logprobs": num_or_all,
        "prompt_logprobs": num_or_all,
        "logprob_token_ids": {"array": {"items": token, "maxItems": limits.max_logprobs, "uniqueItems": True}},
        "top_n_tokens": num_logprobs,
        "length_penalty": {"number": {"minimum": -MAX_LENGTH_PENALTY, "maximum": MAX_LENGTH_PENALTY}},
        "suffix": {"string": {"maxLength": 0}},
        "CompletionRequest.prompt": {"string": {"minLength": 1}, "array": {"minItems": 1}},
        "inputs": {"string": {"minLength": 1}},
        "response_format": {"object": {"oneOf": _RESPONSE_FORMATS}},
        **{name: {_ANY: {"type": "null"}} for name in _NOT_HAD},
    }


def _narrow(field: dict[str, Any], ranges: Mapping[str, Mapping[str, Any]]) -> None:
    """Add to each type of a field's values what is known of it, where the schema does not say it already."""
    for schema in (field, *field.get("anyOf", ())):
        kind = schema.get("type", _ANY if "anyOf" not in schema and "$ref" not in schema else "")
        for name, value in ranges.get(kind, {}).items():
            if name in ("items", "additionalProperties") or name not in schema:
                schema[name] = value
