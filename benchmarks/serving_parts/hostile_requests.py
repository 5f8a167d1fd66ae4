"""Requests that nobody should send, drawn by a seed: each is wrong in one known way, which its answer must name."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

JSON = "application/json"
NUM_LONG_CHARS = 70_000
"""Of a text with more tokens than a model may have."""
_CHAT, _COMPLETIONS, _GENERATE = "/v1/chat/completions", "/v1/completions", "/generate"
_GOOD: Mapping[str, Mapping[str, Any]] = {
    _COMPLETIONS: {"prompt": "12+34=", "max_tokens": 4},
    _CHAT: {"messages": [{"role": "user", "content": "12+34="}], "max_tokens": 4},
    "/tokenize": {"prompt": "12+34="},
    "/detokenize": {"tokens": [5, 6]},
}
_HARMLESS: Mapping[str, Sequence[Any]] = {
    "temperature": (0, 0.5, 1, None),
    "top_p": (0.1, 1, None),
    "top_k": (-1, 0, 7),
    "seed": (-1, 5, None),
    "n": (1, 2),
    "stop": ([], "x", None),
    "user": ("u",),
    "presence_penalty": (0, 2, -2),
    "ignore_eos": (True, False),
}
_NO_TEXT: tuple[Any, ...] = (3, True, [], {}, [None])
_NO_NUMBER: tuple[Any, ...] = ("1", [], {}, [1], "NaN")
_NO_WHOLE_NUMBER: tuple[Any, ...] = (*_NO_NUMBER, 1.5, True)
_NO_TOKENS: tuple[Any, ...] = ([-1], [10**9], [1.5], ["x"], [None], "x", 3, {}, [[1]], [10**30])
_WRONG: Mapping[str, Sequence[Any]] = {
    "n": (0, -1, 65, 10**9, 10**40, *_NO_WHOLE_NUMBER),
    "max_tokens": (-1, 10**9, 10**40, *_NO_WHOLE_NUMBER),
    "min_tokens": (-1, 10**9, *_NO_WHOLE_NUMBER),
    "temperature": (-1, -1e-9, 1e7, 10**400, *_NO_NUMBER),
    "top_p": (0, -0.1, 1.1, 10**30, *_NO_NUMBER),
    "top_k": (-2, 2**40, 10**40, *_NO_WHOLE_NUMBER),
    "min_p": (-0.1, 1.1, *_NO_NUMBER),
    "seed": (2**64, -(2**63) - 1, 10**40, *_NO_WHOLE_NUMBER),
    "presence_penalty": (2.1, -2.1, *_NO_NUMBER),
    "frequency_penalty": (2.1, -2.1, *_NO_NUMBER),
    "repetition_penalty": (0, -1, 1e4, *_NO_NUMBER),
    "logit_bias": ({"x": 1}, {"5": 101}, {"99999999": 1}, {"-1": 1}, {"5": "x"}, {"5": None}, [], "x", 3),
    "stop": ("", [""], ["a"] * 17, "a" * 1025, 3, [3], {}, [None], True),
    "stop_token_ids": (*_NO_TOKENS, [5] * 257),
    "allowed_token_ids": _NO_TOKENS,
    "bad_words": (["a", 3], "x", 3, [None], {}),
    "prompt_logprobs": (-1, 21, 10**40, *_NO_WHOLE_NUMBER),
    "priority": (2**31, -(2**31) - 1, *_NO_WHOLE_NUMBER),
    "stream": ("true", 1, [], {}),
    "stream_options": ({}, {"x": 1}, "x", [], {"include_usage": 1}),
    "model": ("another", "", "../../etc/passwd", *_NO_TEXT),
    "best_of": (7, 0, -1, *_NO_WHOLE_NUMBER),
    "suffix": ("x", *_NO_TEXT),
    "user": _NO_TEXT,
    "metadata": ({"a": 3}, {str(key): "x" for key in range(17)}, "x", []),
    "store": (True, 0, "x"),
    "use_beam_search": (0, "x"),
    "length_penalty": (11, -11, 0.5, *_NO_NUMBER),
    "service_tier": ("x", 3, "priority"),
    "ignore_eos": (1, "x", [], {}),
    "return_token_ids": (1, "x", []),
    "guided_json": ({}, "x"),
    "guided_regex": ("a", 3),
    "guided_choice": (["a"], 3),
    "guided_grammar": ("a", 3),
    "response_format": ({}, {"type": "x"}, {"type": "json_schema"}, {"type": "json_schema", "json_schema": 3}, "x", []),
    "structured_outputs": (
        *({}, "x", 3, [], {"regex": "("}, {"regex": "a" * 300_000}, {"json": "{"}, {"json": {"type": "wizard"}}),
        *(
            {"choice": []},
            {"choice": [3]},
            {"grammar": "start: %"},
            {"grammar": ""},
            {"x": 1},
            {"regex": "a", "json": {}},
        ),
        {"json": {"$ref": "http://localhost/schema"}},
        {"json": {"$ref": "#/nowhere"}},
    ),
}
_WRONG_AT: Mapping[str, Mapping[str, Sequence[Any]]] = {
    _COMPLETIONS: {
        **_WRONG,
        "prompt": (
            None,
            "",
            [],
            [[]],
            [None],
            [[1], 2],
            ["x", 3],
            {},
            3,
            True,
            *_NO_TOKENS[:3],
            "1" * NUM_LONG_CHARS,
            [""],
        ),
        "logprobs": (-1, 21, 10**40, *_NO_WHOLE_NUMBER),
        "echo": (1, "x", []),
        "truncate_prompt_tokens": (0, -1, *_NO_WHOLE_NUMBER),
        "add_special_tokens": (1, "x"),
    },
    _CHAT: {
        **_WRONG,
        "messages": (
            *(None, [], [None], [[]], {}, 3, "x", [{}], [3], [{"role": 3, "content": "x"}]),
            *([{"role": "user", "content": 3}], [{"role": "user", "content": [{"type": "text"}]}]),
            [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://localhost/"}}]}],
            [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}]}],
            [{"role": "user", "content": "1" * NUM_LONG_CHARS}],
            [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}],
        ),
        "logprobs": (1, 0, "x", [], 5),
        "top_logprobs": (1, -1, 21, *_NO_WHOLE_NUMBER),
        "max_completion_tokens": (0, -1, 10**9, *_NO_WHOLE_NUMBER),
        "tools": ({}, "x", [3], [{}], [{"type": "function"}], [{"type": "function", "function": {"name": "a b"}}]),
        "tool_choice": ("required", "wizard", {}, {"type": "function", "function": {"name": "none"}}, 3),
        "chat_template_kwargs": ({"messages": []}, {"conversation": 1}, "x", [], {"tokenize": True}),
        "reasoning_effort": ("high", 3, {}),
        "continue_final_message": (1, "x"),
    },
    "/tokenize": {
        "prompt": (3, [], {}, True, [1]),
        "messages": ([], [None], {}, "x", [{}]),
        "model": _WRONG["model"],
        "add_special_tokens": (1, "x"),
        "chat_template_kwargs": ("x", []),
    },
    "/detokenize": {"tokens": (None, *_NO_TOKENS, [5] * 100 + [-1]), "model": _WRONG["model"]},
}
_RAW_VALUES = (
    "NaN",
    "Infinity",
    "-Infinity",
    "1e999",
    "nul",
    "'x'",
    "9" * 5000,
    "[" * 3000,
    '"\\ud800"',
    '"\\x00"',
    "+1",
)
_OTHER_TYPES = ("", "text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "application/xml", "json")


@dataclass(frozen=True, kw_only=True)
class HostileRequest:
    """One of them."""

    path: str
    body: bytes
    statuses: frozenset[int]
    """One of which its answer must have."""
    method: str = "POST"
    content_type: str = JSON
    param: str | None = None
    """That the answer must name."""
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def has_tgi_errors(self) -> bool:
        """Whether its route answers with errors of TGI's shape."""
        return self.path.startswith(_GENERATE)


def hostile_requests(seed: int) -> Iterator[HostileRequest]:
    """Without an end; the same for the same seed."""
    draw = random.Random(seed)
    kinds = (_wrong_field, _wrong_field, _wrong_field, _unknown_field, _broken_json, _raw_value, _elsewhere, _of_tgi)
    while True:
        yield draw.choice(kinds)(draw)


def find_fault(request: HostileRequest, status: int, content: bytes) -> str | None:
    """What is wrong with the answer to a request; None where it is the error that the request deserves."""
    if status not in request.statuses:
        return f"status {status} in place of {sorted(request.statuses)}: {content[:200]!r}"
    if request.method == "HEAD":
        return None
    try:
        error = json.loads(content)["error"]
        message = error if request.has_tgi_errors and isinstance(error, str) else error["message"]
    except (ValueError, KeyError, TypeError):
        return f"no error object: {content[:200]!r}"
    if not message:
        return "an error without a message"
    if request.param is not None and error["param"] != request.param:
        return f"param {error['param']!r} in place of {request.param!r}: {message}"
    return None


def _body_with(draw: random.Random, path: str, fields: Mapping[str, Any]) -> dict[str, Any]:
    """A good body with some harmless fields, and those that are given in places of their own."""
    harmless = draw.sample(sorted(_HARMLESS), draw.randrange(4)) if path in (_COMPLETIONS, _CHAT) else []
    body = {**_GOOD[path], **{name: draw.choice(_HARMLESS[name]) for name in harmless}, **fields}
    names = list(body)
    draw.shuffle(names)
    return {name: body[name] for name in names}


def _wrong_field(draw: random.Random) -> HostileRequest:
    path = draw.choice((_COMPLETIONS, _CHAT, _COMPLETIONS, _CHAT, "/tokenize", "/detokenize"))
    name = draw.choice(sorted(_WRONG_AT[path]))
    body = _body_with(draw, path, {name: draw.choice(_WRONG_AT[path][name])})
    statuses = frozenset({400, 404} if name == "model" else {400})
    return HostileRequest(path=path, body=_dump(body), statuses=statuses, param=name)


def _unknown_field(draw: random.Random) -> HostileRequest:
    path = draw.choice(sorted(_GOOD))
    name = draw.choice(
        ("__proto__", "constructor", "id", "Prompt", "tempurature", "x" * draw.randrange(1, 300), "ключ")
    )
    value = draw.choice((None, 1, [], {}, "x" * draw.randrange(1000)))
    body = _body_with(draw, path, {name: value})
    return HostileRequest(path=path, body=_dump(body), statuses=frozenset({400}), param=name)


def _broken_json(draw: random.Random) -> HostileRequest:
    path = draw.choice(sorted(_GOOD))
    good = _dump(_body_with(draw, path, {}))
    body = draw.choice(
        (
            good[: draw.randrange(len(good))],
            good[draw.randrange(1, len(good)) :],
            draw.randbytes(draw.randrange(1, 2000)),
            b"[" * draw.randrange(1, 200_000),
            b'{"prompt":' * draw.randrange(1, 20_000),
            good + b"}",
            good[:-1] + b",}",
            good.replace(b'"', b"'"),
            b"\xef\xbb\xbf" + good,
            good.replace(b"12", b"\xff\xfe") if b"12" in good else b"\xff",
            _dump([good.decode()]),
            _dump(draw.choice((None, 3, "text", True, [], [{}]))),
        )
    )
    return HostileRequest(path=path, body=body, statuses=frozenset({400}))


def _raw_value(draw: random.Random) -> HostileRequest:
    """Of a number, something that is none, or none that JSON knows."""
    path = draw.choice((_COMPLETIONS, _CHAT))
    good = _dump(dict(_GOOD[path]))
    name = draw.choice(("n", "max_tokens", "top_k", "seed", "prompt_logprobs", "temperature", "top_p"))
    body = good[:-1] + f', "{name}": {draw.choice(_RAW_VALUES)}'.encode() + b"}"
    return HostileRequest(path=path, body=body, statuses=frozenset({400}))


def _elsewhere(draw: random.Random) -> HostileRequest:
    """A path, a method or a type of body that there is not."""
    good = _dump(_GOOD[_COMPLETIONS])
    match draw.randrange(4):
        case 0:
            path = draw.choice(("/v1", "/v1/", "/v2/completions", "/admin", "/%2e%2e/etc/passwd", "/v1/models/../../x"))
            return HostileRequest(path=f"{path}?{draw.random()}", body=good, statuses=frozenset({404, 405}))
        case 1:
            method = draw.choice(("GET", "PUT", "DELETE", "PATCH", "OPTIONS", "HEAD", "TRACE"))
            return HostileRequest(path=_COMPLETIONS, method=method, body=b"", statuses=frozenset({405}))
        case 2:
            kind = draw.choice(_OTHER_TYPES)
            return HostileRequest(path=_COMPLETIONS, body=good, content_type=kind, statuses=frozenset({415}))
        case _:
            host = draw.choice(("example.com", "127.0.0.1.example.com", "", "169.254.169.254"))
            headers = {"Host": host}
            return HostileRequest(path=_COMPLETIONS, body=good, headers=headers, statuses=frozenset({403}))


def _of_tgi(draw: random.Random) -> HostileRequest:
    parameters = {
        "max_new_tokens": (-1, 0, 10**9, "x"),
        "temperature": (0, -1, "x"),
        "top_k": (0, -1, 1.5),
        "top_p": (0, 1, 2),
        "stop": ([""], "x", ["a"] * 17),
        "best_of": (2, True),
        "watermark": (True, 0),
        "grammar": ({}, "x"),
        "typical_p": (0.5,),
        "truncate": (0, -1),
        "top_n_tokens": (-1, 21),
        "x" * draw.randrange(1, 99): (1,),
    }
    name = draw.choice(sorted(parameters))
    body = draw.choice(
        (
            {"inputs": "1+1=", "parameters": {name: draw.choice(parameters[name])}},
            {"inputs": draw.choice(("", None, 3, [], {}, "1" * NUM_LONG_CHARS))},
            {"inputs": "1+1=", "parameters": draw.choice((3, [], "x"))},
            {"inputs": "1+1=", f"x{draw.random()}": 1},
        )
    )
    path = draw.choice((_GENERATE, "/generate_stream"))
    return HostileRequest(path=path, body=_dump(body), statuses=frozenset({400, 422}))


def _dump(content: Any) -> bytes:
    return json.dumps(content).encode()
