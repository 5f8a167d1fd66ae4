"""``/v1/messages``, with an engine that writes the same text for all; Anthropic's own client reads what comes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import anthropic
import pytest
from anthropic.types import Message, RawMessageStreamEvent
from pydantic import TypeAdapter
from serving_fakes import (
    CALL,
    KEY,
    TEMPLATE,
    TOKENIZER,
    VOCABULARY,
    FakePool,
    calling_context,
    fake_context,
    fake_talker,
)
from starlette.testclient import TestClient

from rlserve.engine.requests.request import FinishReason
from rlserve.serving.front.app import create_app
from rlserve.serving.front.gate import Gate
from rlserve.serving.protocol import message_schemas
from rlserve.serving.text.conversation import ConversationRenderer

NOW: dict[str, Any] = {"name": "now", "input_schema": {"type": "object", "properties": {}}}
ASKED: dict[str, Any] = {"model": "fake", "max_tokens": 50, "messages": [{"role": "user", "content": "hi"}]}
EVENT: TypeAdapter[Any] = TypeAdapter(RawMessageStreamEvent)


@pytest.fixture
def pool() -> FakePool:
    return fake_talker()


@pytest.fixture
def client(pool: FakePool) -> Iterator[TestClient]:
    context = calling_context(pool)
    gate = Gate(create_app(context), context.keys, context.metrics, checks_host=False)
    with TestClient(gate, headers={"X-Api-Key": KEY}) as made:
        yield made


def ask(client: TestClient, **asked: Any) -> Message:
    answer = client.post("/v1/messages", json=ASKED | asked)
    assert answer.status_code == 200, answer.text
    message_schemas.MessageAnswer.model_validate_json(answer.content, strict=True)
    return Message.model_validate(answer.json(), strict=True)


def stream(client: TestClient, **asked: Any) -> list[dict[str, Any]]:
    """The events, each as Anthropic's types have it and under its own name."""
    text = client.post("/v1/messages", json=ASKED | {"stream": True} | asked).text
    found = []
    for part in text.removesuffix("\n\n").split("\n\n"):
        name, data = part.split("\n")
        found.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {found[-1]['type']}"
        if found[-1]["type"] not in ("ping", "error"):
            EVENT.validate_python(found[-1], strict=True)
    return found


def prompt(pool: FakePool) -> str:
    return VOCABULARY.decode(pool.requests[-1].prompt_token_ids, skip_special_tokens=True)


def test_a_message_is_answered(client: TestClient, pool: FakePool) -> None:
    message = ask(client, system="rules", temperature=0.5, top_k=3, top_p=0.9, stop_sequences=["x"])
    assert prompt(pool) == "system: rules user: hi "
    sampling = pool.requests[0].sampling
    assert (sampling.temperature, sampling.top_k, sampling.top_p, sampling.stop) == (0.5, 3, 0.9, ("x",))
    assert sampling.max_tokens == 50
    assert [block.to_dict() for block in message.content] == [{"type": "text", "text": "hello"}]
    assert (message.stop_reason, message.stop_sequence, message.model) == ("end_turn", None, "fake")
    usage = message.usage
    assert (usage.input_tokens, usage.cache_read_input_tokens, usage.output_tokens) == (22, 1, 5)


def test_more_tokens_than_there_is_room_for_are_cut(client: TestClient, pool: FakePool) -> None:
    pool.finish_reason = FinishReason.LENGTH
    assert ask(client).stop_reason == "max_tokens"
    pool.limits = replace(pool.limits, max_model_len=len("user: hi ") + 5)
    assert ask(client, max_tokens=32000).stop_reason == "model_context_window_exceeded"
    assert pool.requests[-1].sampling.max_tokens == 5
    assert ask(client, max_tokens=5).stop_reason == "max_tokens"


TEXT = [{"type": "text", "text": "z"}]


def test_a_conversation_of_blocks_comes_to_messages(pool: FakePool) -> None:
    template = (
        "{% for m in messages %}{{ m.role }}: {{ m.reasoning_content }} {{ m.content }} "
        "{% for c in m.tool_calls %}{{ c.function.name }}{{ c.function.arguments.x }}{% endfor %}"
        "{{ m.name }}/{% endfor %}"
    )
    context = replace(fake_context(pool=pool), renderer=ConversationRenderer(TOKENIZER, template, 5.0))
    cached = {"cache_control": {"type": "ephemeral"}}
    messages = [
        {"role": "user", "content": [{"type": "text", "text": "a", **cached}, {"type": "text", "text": "b"}]},
        {"role": "user", "content": "c"},
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "hm", "signature": "x"},
                {"type": "text", "text": "well"},
                {"type": "tool_use", "id": "t1", "name": "f", "input": {"x": 1}},
                {"type": "tool_use", "id": "t2", "name": "g", "input": {"x": 2}},
            ],
        },
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "t1", "content": "one"},
                {
                    "type": "tool_result",
                    "tool_use_id": "t2",
                    "is_error": True,
                    "content": [{"type": "text", "text": "z"}],
                },
                {"type": "text", "text": "so"},
            ],
        },
    ]
    system = [{"type": "text", "text": "r", **cached}, {"type": "text", "text": "s"}]
    ask(TestClient(create_app(context)), messages=messages, system=system)
    assert prompt(pool) == (
        "system:  r\ns /user:  a\nb\nc /assistant: hm well f1g2/tool:  one f/tool:  rror: z g/user:  so /"
    )


def test_what_the_assistant_has_begun_is_gone_on_with(client: TestClient, pool: FakePool) -> None:
    ask(client, messages=[*ASKED["messages"], {"role": "assistant", "content": "so"}])
    assert prompt(pool) == "user: hi assistant: so"


def test_events_of_a_text(client: TestClient) -> None:
    events = stream(client)
    assert [event["type"] for event in events] == [
        *("message_start", "ping", "content_block_start"),
        *["content_block_delta"] * 5,
        *("content_block_stop", "message_delta", "message_stop"),
    ]
    assert "".join(event["delta"]["text"] for event in events[3:8]) == "hello"
    assert (events[0]["message"]["content"], events[0]["message"]["usage"]["input_tokens"]) == ([], 9)
    end = events[-2]
    assert end["delta"] == {"stop_reason": "end_turn", "stop_sequence": None}
    assert (end["usage"]["input_tokens"], end["usage"]["cache_read_input_tokens"]) == (8, 1)
    assert end["usage"]["output_tokens"] == 5


def test_thinking_text_and_calls_are_blocks(client: TestClient, pool: FakePool) -> None:
    pool.text = f"<think>hm</think>well{CALL}{CALL}"
    message = ask(client, tools=[NOW])
    assert [block.type for block in message.content] == ["thinking", "text", "tool_use", "tool_use"]
    thinking, text, call, _ = (block.to_dict() for block in message.content)
    assert (thinking["thinking"], text["text"], call["name"]) == ("hm", "well", "now")
    assert (call["input"], message.stop_reason) == ({"a": [1, 2]}, "tool_use")
    assert thinking["signature"]


def test_a_conversation_goes_on_with_what_was_answered(client: TestClient, pool: FakePool) -> None:
    pool.text = f"<think>hm</think>well{CALL}"
    blocks = [block.to_dict() for block in ask(client, tools=[NOW]).content]
    result = {"type": "tool_result", "tool_use_id": blocks[-1]["id"], "content": "noon"}
    messages = [{"role": "assistant", "content": blocks}, {"role": "user", "content": [result]}]
    ask(client, messages=[*ASKED["messages"], *messages], tools=[NOW])
    assert prompt(pool) == "user: hi assistant: well tool: noon "


@pytest.mark.parametrize("arguments", ["[1]", '{"a": nothing}', '"x"'])
def test_arguments_that_are_no_object_are_told_as_they_are(client: TestClient, pool: FakePool, arguments: str) -> None:
    pool.text = f'<tool_call>{{"name": "now", "arguments": {arguments}}}</tool_call>'
    (block,) = ask(client, tools=[NOW]).content
    assert block.to_dict()["input"] == {"INVALID_JSON": arguments}


@pytest.mark.parametrize(
    ("choice", "forces"),
    [
        ({"type": "auto"}, False),
        ({"type": "any", "disable_parallel_tool_use": True}, True),
        ({"type": "tool", "name": "now"}, True),
    ],
)
def test_tools_are_chosen(client: TestClient, pool: FakePool, choice: Any, forces: bool) -> None:
    ask(client, tools=[NOW, {**NOW, "name": "later", "type": None, "cache_control": None}], tool_choice=choice)
    form = pool.requests[0].sampling.structured_output
    assert (form is not None) == forces
    assert form is None or ("later" in form.text) == (choice["type"] == "any")


def test_tools_that_are_not_to_be_called_are_not_looked_for(client: TestClient, pool: FakePool) -> None:
    pool.text = CALL
    (block,) = ask(client, tools=[NOW], tool_choice={"type": "none"}).content
    assert block.to_dict() == {"type": "text", "text": CALL}


def test_a_form(client: TestClient, pool: FakePool) -> None:
    ask(client, output_config={"format": {"type": "json_schema", "schema": {"type": "object"}}})
    form = pool.requests[0].sampling.structured_output
    assert form is not None
    assert (form.kind, form.text) == ("json_schema", '{"type": "object"}')


@pytest.mark.parametrize(
    ("thinking", "thinks"),
    [
        ({"type": "disabled"}, False),
        ({"type": "adaptive"}, True),
        ({"type": "enabled", "budget_tokens": 1024}, True),
    ],
)
def test_thinking_is_what_the_template_makes_of_it(
    client: TestClient, pool: FakePool, thinking: dict[str, Any], thinks: bool
) -> None:
    ask(client, thinking=thinking, max_tokens=2000)
    assert prompt(pool).endswith("thinks") == thinks


def test_tokens_are_counted(client: TestClient, pool: FakePool) -> None:
    body = {"model": "fake", "messages": ASKED["messages"], "system": "rules", "tools": [NOW]}
    answer = client.post("/v1/messages/count_tokens", json=body)
    message_schemas.TokenCount.model_validate_json(answer.content, strict=True)
    assert answer.json() == {"input_tokens": len("system: rules user: hi ")}
    assert pool.requests == []
    assert client.post("/v1/messages/count_tokens", json={**body, "max_tokens": 3}).status_code == 400


IMAGE = {"type": "image", "source": {"type": "url", "url": "http://x"}}
RESULT = {"type": "tool_result", "tool_use_id": "t", "content": "x"}


@pytest.mark.parametrize(
    ("extra", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "user", "content": [IMAGE]}]}, "image"),
        ({"messages": [{"role": "user", "content": [RESULT]}]}, "tool_result"),
        ({"messages": [{"role": "assistant", "content": [RESULT]}]}, "messages"),
        ({"messages": [{"role": "user", "content": "a" * 500}]}, "messages"),
        ({"system": [IMAGE]}, "system"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "web_search_20250305"),
        ({"tools": [NOW], "tool_choice": {"type": "tool", "name": "then"}}, "tool_choice"),
        ({"tool_choice": {"type": "any"}}, "tool_choice"),
        ({"thinking": {"type": "enabled"}}, "thinking"),
        ({"thinking": {"type": "enabled", "budget_tokens": 2000}}, "thinking"),
        ({"thinking": {"type": "sometimes"}}, "thinking"),
        ({"temperature": -1.0}, "temperature"),
        ({"top_k": -7}, "top_k"),
        ({"stop_sequences": [""]}, "stop_sequences"),
        ({"mcp_servers": []}, "mcp_servers"),
        ({"n": 2}, "n"),
    ],
)
def test_what_cannot_be_had_is_named(client: TestClient, extra: dict[str, Any], param: str) -> None:
    answer = client.post("/v1/messages", json=ASKED | extra)
    error = message_schemas.MessagesErrorAnswer.model_validate_json(answer.content, strict=True)
    assert (answer.status_code, error.error.type) == (400, "invalid_request_error"), answer.text
    assert param in error.error.message
    assert error.request_id == answer.headers["request-id"] == answer.headers["x-request-id"]


def test_thinking_that_cannot_be_turned_off_is_refused(pool: FakePool) -> None:
    renderer = ConversationRenderer(TOKENIZER, TEMPLATE + "{# </think> #}", 5.0)
    client = TestClient(create_app(replace(fake_context(pool=pool), renderer=renderer)))
    for kind, status in (("disabled", 400), ("adaptive", 200)):
        assert client.post("/v1/messages", json=ASKED | {"thinking": {"type": kind}}).status_code == status
    answer = client.post("/v1/messages", json=ASKED | {"output_config": {"effort": "high"}})
    assert (answer.status_code, "output_config" in answer.text) == (400, True)


@pytest.mark.parametrize(
    ("method", "path", "headers", "status", "kind"),
    [
        ("POST", "/v1/messages", {"X-Api-Key": "wrong"}, 401, "authentication_error"),
        ("POST", "/v1/messages/count_tokens", {"X-Api-Key": ""}, 401, "authentication_error"),
        ("GET", "/v1/messages", {}, 405, "invalid_request_error"),
    ],
)
def test_refusals_before_the_route_have_its_shape(
    client: TestClient, method: str, path: str, headers: dict[str, str], status: int, kind: str
) -> None:
    answer = client.request(method, path, headers=headers, json=None if method == "GET" else ASKED)
    error = message_schemas.MessagesErrorAnswer.model_validate_json(answer.content, strict=True)
    assert (answer.status_code, error.error.type) == (status, kind)
    assert error.request_id == answer.headers["request-id"]


def test_what_goes_wrong_in_a_stream_is_told_in_it(client: TestClient, pool: FakePool) -> None:
    pool.error = "no replica could be had"
    assert stream(client)[-1]["error"]["type"] == "overloaded_error"
    assert client.post("/v1/messages", json=ASKED).status_code == 503


def test_with_anthropic_s_client(client: TestClient, pool: FakePool) -> None:
    made = anthropic.Anthropic(base_url="http://testserver", api_key=KEY, http_client=client, max_retries=0)
    assert made.messages.create(**ASKED).to_dict()["content"] == [{"type": "text", "text": "hello"}]
    assert made.messages.count_tokens(model="fake", messages=ASKED["messages"]).input_tokens == 9
    pool.text = f"<think>hm</think>well{CALL}"
    with made.messages.stream(**ASKED, tools=[NOW]) as events:  # type: ignore[arg-type]
        assert "".join(events.text_stream) == "well"
        message = events.get_final_message()
    assert [block.type for block in message.content] == ["thinking", "text", "tool_use"]
    assert (message.content[2].to_dict()["input"], message.stop_reason) == ({"a": [1, 2]}, "tool_use")
    assert message.usage.cache_read_input_tokens == 1
    with pytest.raises(anthropic.BadRequestError, match="temperature") as refused:
        made.messages.create(**ASKED, extra_body={"temperature": -1.0})
    assert refused.value.request_id
    with pytest.raises(anthropic.AuthenticationError):
        anthropic.Anthropic(base_url="http://testserver", auth_token="wrong", http_client=client).messages.create(
            **ASKED
        )
