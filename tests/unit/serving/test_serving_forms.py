"""Forms, tools and reasoning over HTTP, with an engine that writes what it is told."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from serving_fakes import TOKENIZER, VOCABULARY, FakePool, fake_context
from starlette.testclient import TestClient
from test_serving_routes import events

from rlserve.engine.requests.structured_output import StructuredOutput
from rlserve.serving.front.app import create_app
from rlserve.serving.text.conversation import ConversationRenderer

HERMES_TEMPLATE = """{#- <tool_call> </think> #}
{%- for tool in tools or [] %}{{ tool.function.name }} {% endfor %}
{%- for message in messages %}{{ message.role }}: {{ message.content }}
{%- for call in message.tool_calls or [] %}{{ call.function.arguments.x }}{% endfor %} {% endfor %}"""
ADD = {
    "type": "function",
    "function": {"name": "add", "description": "sums", "parameters": {"type": "object", "properties": {"x": {}}}},
}
NOW = {"type": "function", "function": {"name": "now"}}
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}
CALL = '<tool_call>\n{"name": "add", "arguments": {"x": 1}}\n</tool_call>'
CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "hi"}]}


def _client(pool: FakePool, template: str = HERMES_TEMPLATE) -> TestClient:
    pool.limits = replace(pool.limits, max_model_len=400)
    context = replace(fake_context(pool=pool), renderer=ConversationRenderer(TOKENIZER, template, 5.0))
    return TestClient(create_app(context))


def _post(pool: FakePool, path: str = "chat/completions", **asked: Any) -> dict[str, Any]:
    answer = _client(pool).post(f"/v1/{path}", json=asked if "prompt" in asked else {**CHAT, **asked})
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


FORMS: list[tuple[dict[str, Any], StructuredOutput | None]] = [
    ({"response_format": {"type": "text"}}, None),
    ({"response_format": {"type": "json_object"}}, StructuredOutput(kind="json_object")),
    (
        {"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMA, "strict": True}}},
        StructuredOutput(kind="json_schema", text=json.dumps(SCHEMA)),
    ),
    ({"structured_outputs": {"json": SCHEMA}}, StructuredOutput(kind="json_schema", text=json.dumps(SCHEMA))),
    ({"structured_outputs": {"json": "{}", "regex": None}}, StructuredOutput(kind="json_schema", text="{}")),
    ({"structured_outputs": {"json_object": True}}, StructuredOutput(kind="json_object")),
    ({"structured_outputs": {"regex": "a+"}}, StructuredOutput(kind="regex", text="a+")),
    ({"structured_outputs": {"choice": ["a", "b"]}}, StructuredOutput(kind="choice", text='["a", "b"]')),
    ({"structured_outputs": {"grammar": 'root ::= "a"'}}, StructuredOutput(kind="grammar", text='root ::= "a"')),
]


@pytest.mark.parametrize(("asked", "expected"), FORMS)
@pytest.mark.parametrize("path", ["chat/completions", "completions"])
def test_the_engine_is_told_the_form(path: str, asked: dict[str, Any], expected: StructuredOutput | None) -> None:
    pool = FakePool()
    _post(pool, path, **asked, **({"prompt": "a"} if path == "completions" else {}))
    assert pool.requests[0].sampling.structured_output == expected


@pytest.mark.parametrize(
    ("asked", "param"),
    [
        ({"response_format": {"type": "json"}}, "response_format"),
        ({"response_format": {"type": "json_schema", "json_schema": SCHEMA}}, "response_format"),
        ({"response_format": {"type": "json_schema", "json_schema": {"schema": "{}"}}}, "response_format"),
        ({"structured_outputs": "json"}, "structured_outputs"),
        ({"structured_outputs": {}}, "structured_outputs"),
        ({"structured_outputs": {"json": SCHEMA, "regex": "a"}}, "structured_outputs"),
        ({"structured_outputs": {"structural_tag": "a"}}, "structured_outputs"),
        ({"structured_outputs": {"regex": 3}}, "structured_outputs"),
        ({"structured_outputs": {"regex": "a" * 300_000}}, "structured_outputs"),
        ({"structured_outputs": {"regex": "a"}, "ignore_eos": True}, "structured_outputs"),
        ({"structured_outputs": {"regex": "a"}, "response_format": {"type": "json_object"}}, "structured_outputs"),
        ({"tools": [ADD], "structured_outputs": {"regex": "a"}}, "tool_choice"),
        ({"tools": [ADD], "tool_choice": {"type": "function", "function": {"name": "later"}}}, "tool_choice"),
        ({"tools": [ADD], "tool_choice": {"type": "function", "function": {"name": "none"}}}, "tool_choice"),
        ({"tool_choice": {"type": "function", "function": {"name": "none"}}}, "tool_choice"),
        ({"tools": [ADD], "tool_choice": "any"}, "tool_choice"),
        ({"tools": [{"type": "function", "function": {"name": "two words"}}]}, "tools"),
        ({"tools": [NOW] * 129}, "tools"),
    ],
)
def test_what_is_no_form_or_no_tool_names_its_parameter(asked: dict[str, Any], param: str) -> None:
    answer = _client(FakePool()).post("/v1/chat/completions", json={**CHAT, **asked})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param), answer.text


def test_tools_need_a_known_format() -> None:
    answer = _client(FakePool(), "{{ messages[0].content }}").post(
        "/v1/chat/completions", json={**CHAT, "tools": [ADD]}
    )
    assert answer.status_code == 400
    assert "model.tool_parser" in answer.json()["error"]["message"]


def test_tools_are_shown_to_the_model_and_their_calls_read_out_of_the_answer() -> None:
    pool = FakePool(f"let me see\n{CALL}\n{CALL}")
    answer = _post(pool, tools=[ADD, NOW])
    prompt = VOCABULARY.decode(pool.requests[0].prompt_token_ids, skip_special_tokens=True)
    assert prompt == "add now user: hi "
    assert pool.requests[0].sampling.structured_output is None
    message = answer["choices"][0]["message"]
    assert message["content"] == "let me see"
    calls = message["tool_calls"]
    assert [call["function"] for call in calls] == [{"name": "add", "arguments": '{"x": 1}'}] * 2
    assert {call["type"] for call in calls} == {"function"}
    assert len({call["id"] for call in calls}) == 2


def test_calls_are_streamed_name_first() -> None:
    *_, last = chunks = events(
        _client(FakePool(CALL)).post("/v1/chat/completions", json={**CHAT, "tools": [ADD], "stream": True})
    )
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert deltas[0] == {"role": "assistant", "content": ""}
    calls = [call for delta in deltas for call in delta.get("tool_calls", [])]
    assert calls[0]["function"] == {"name": "add", "arguments": ""}
    assert calls[0]["id"].startswith("call_")
    assert all("id" not in call for call in calls[1:])
    assert "".join(call["function"]["arguments"] for call in calls) == '{"x": 1}'
    assert len(calls) > 3
    assert not "".join(delta.get("content", "") for delta in deltas)
    assert last["choices"][0]["finish_reason"] == "length"


@pytest.mark.parametrize(
    "choice", ["required", {"type": "function", "function": {"name": "add"}}], ids=["required", "named"]
)
def test_a_choice_of_tools_forces_their_calls(choice: Any) -> None:
    pool = FakePool(CALL)
    answer = _post(pool, tools=[ADD, NOW], tool_choice=choice, parallel_tool_calls=False)
    wanted = pool.requests[0].sampling.structured_output
    assert wanted is not None
    assert wanted.kind == "grammar"
    assert ('"now' in wanted.text.replace("\\", "")) == (choice == "required")
    message = answer["choices"][0]["message"]
    assert message["content"] is None
    assert message["tool_calls"][0]["function"]["name"] == "add"


def test_no_tool_is_shown_or_looked_for_where_none_is_to_be_called() -> None:
    pool = FakePool(CALL)
    message = _post(pool, tools=[ADD], tool_choice="none")["choices"][0]["message"]
    assert VOCABULARY.decode(pool.requests[0].prompt_token_ids, skip_special_tokens=True) == "user: hi "
    assert message == {"role": "assistant", "content": CALL, "refusal": None}


def test_calls_of_before_are_given_to_the_template_as_what_they_are() -> None:
    pool = FakePool()
    call = {"id": "c", "type": "function", "function": {"name": "add", "arguments": '{"x": 17}'}}
    messages = [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c", "content": "18"},
    ]
    _post(pool, messages=messages)
    prompt = VOCABULARY.decode(pool.requests[0].prompt_token_ids, skip_special_tokens=True)
    assert prompt == "user: hi assistant: 17 tool: 18 "
    call["function"]["arguments"] = "{"  # type: ignore[index]
    answer = _client(FakePool()).post("/v1/chat/completions", json={"messages": messages})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "messages")


def test_reasoning_is_told_apart_whole_and_streamed() -> None:
    text = "<think>\ntwo and two\n</think>\n\nfour"
    message = _post(FakePool(text))["choices"][0]["message"]
    assert (message["reasoning"], message["content"]) == ("two and two", "four")
    chunks = events(_client(FakePool(text)).post("/v1/chat/completions", json={**CHAT, "stream": True}))
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert "".join(delta.get("reasoning", "") for delta in deltas) == "two and two"
    assert "".join(delta.get("content", "") for delta in deltas) == "four"


def test_reasoning_that_the_template_has_begun_goes_on() -> None:
    pool = FakePool("hm\n</think>ok")
    client = _client(pool, "{{ messages[0].content }}<think>\n{# </think> #}")
    message = client.post("/v1/chat/completions", json=CHAT).json()["choices"][0]["message"]
    assert (message["reasoning"], message["content"]) == ("hm", "ok")


def test_an_answer_of_a_given_form_has_no_reasoning() -> None:
    text = "<think>a</think>b"
    message = _post(FakePool(text), structured_outputs={"regex": ".*"})["choices"][0]["message"]
    assert message == {"role": "assistant", "content": text, "refusal": None}


def test_with_log_probabilities_every_token_is_told_while_text_is_held_back() -> None:
    asked = {**CHAT, "tools": [ADD], "stream": True, "logprobs": True, "top_logprobs": 0}
    chunks = events(_client(FakePool(CALL)).post("/v1/chat/completions", json=asked))
    told = [chunk["choices"][0]["logprobs"]["content"] for chunk in chunks if chunk["choices"][0]["logprobs"]]
    assert "".join(token["token"] for each in told for token in each) == CALL
