"""``/v1/responses``, with an engine that writes the same text for all; OpenAI's own types read what comes."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import openai
import pytest
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter
from serving_fakes import CALL, TOKENIZER, VOCABULARY, FakePool, calling_context, fake_context, fake_talker
from starlette.testclient import TestClient

from rlserve.engine.requests.request import FinishReason
from rlserve.serving.front.app import create_app
from rlserve.serving.protocol import answer_schemas as schemas
from rlserve.serving.protocol import response_schemas
from rlserve.serving.text.conversation import ConversationRenderer

NOW: dict[str, Any] = {"type": "function", "name": "now", "parameters": {"type": "object", "properties": {}}}
EVENT: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)


@pytest.fixture
def pool() -> FakePool:
    return fake_talker()


@pytest.fixture
def client(pool: FakePool) -> TestClient:
    context = calling_context(pool)
    return TestClient(create_app(context))


def ask(client: TestClient, **asked: Any) -> Response:
    answer = client.post("/v1/responses", json={"input": "hi", **asked})
    assert answer.status_code == 200, answer.text
    response_schemas.ResponseAnswer.model_validate_json(answer.content, strict=True)
    return Response.model_validate(answer.json(), strict=True)


def stream(client: TestClient, **asked: Any) -> list[dict[str, Any]]:
    """The events, each as OpenAI's types have it and under its own name, numbered from 0 on."""
    text = client.post("/v1/responses", json={"input": "hi", "stream": True, **asked}).text
    found = []
    for part in text.removesuffix("\n\n").split("\n\n"):
        name, data = part.split("\n")
        found.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {found[-1]['type']}"
        EVENT.validate_python(found[-1], strict=True)
    assert [event["sequence_number"] for event in found] == list(range(len(found)))
    return found


def without_names(items: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in item.items() if key not in ("id", "call_id")} for item in items]


def prompt(pool: FakePool) -> str:
    return VOCABULARY.decode(pool.requests[-1].prompt_token_ids, skip_special_tokens=True)


def test_a_text_is_answered(client: TestClient, pool: FakePool) -> None:
    response = ask(client, instructions="rules", max_output_tokens=9, temperature=0.5, metadata={"a": "b"}, store=True)
    assert prompt(pool) == "system: rules user: hi "
    assert (pool.requests[0].sampling.max_tokens, pool.requests[0].sampling.temperature) == (9, 0.5)
    assert (response.output_text, response.status, response.model) == ("hello", "completed", "fake")
    assert (response.instructions, response.metadata, response.model_extra) == ("rules", {"a": "b"}, {"store": False})
    usage = response.usage
    assert usage is not None
    assert (usage.input_tokens, usage.output_tokens, usage.input_tokens_details.cached_tokens) == (23, 5, 1)


def test_what_max_output_tokens_cuts_off_is_incomplete(client: TestClient, pool: FakePool) -> None:
    pool.finish_reason = FinishReason.LENGTH
    response = ask(client)
    assert response.incomplete_details is not None
    assert (response.status, response.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    assert response.output[0].status == "incomplete"  # type: ignore[union-attr]
    assert stream(client)[-1]["type"] == "response.incomplete"


def test_a_conversation_of_items_comes_to_messages(client: TestClient, pool: FakePool) -> None:
    template = (
        "{% for m in messages %}{{ m.role }}: {{ m.reasoning_content }} {{ m.content }} "
        "{% for c in m.tool_calls %}{{ c.function.name }}{{ c.function.arguments.x }}{% endfor %}"
        "{{ m.name }}/{% endfor %}"
    )
    context = replace(fake_context(pool=pool), renderer=ConversationRenderer(TOKENIZER, template, 5.0))
    items = [
        {"role": "developer", "content": [{"type": "input_text", "text": "b"}]},
        {"type": "message", "role": "user", "content": "hi"},
        {"type": "reasoning", "id": "rs_1", "summary": [], "content": [{"type": "reasoning_text", "text": "hm"}]},
        {
            "type": "message",
            "id": "msg_1",
            "role": "assistant",
            "status": "completed",
            "content": [{"type": "output_text", "text": "well", "annotations": [], "logprobs": []}],
        },
        {"type": "function_call", "call_id": "c1", "name": "f", "arguments": '{"x": 1}'},
        {"type": "function_call", "call_id": "c2", "name": "g", "arguments": '{"x": 2}'},
        {"type": "function_call_output", "call_id": "c1", "output": "one"},
        {"type": "function_call_output", "call_id": "c2", "output": [{"type": "input_text", "text": "two"}]},
        {"role": "assistant", "content": "so"},
        {"role": "assistant", "content": "yes"},
    ]
    ask(TestClient(create_app(context)), input=items, instructions="a")
    told = (
        "system:  a\n\nb /user:  hi /assistant: hm well f1g2/tool:  one f/tool:  two g/"
        "assistant:  so /assistant:  yes /"
    )
    assert prompt(pool) == told


def test_events_of_a_text(client: TestClient) -> None:
    events = stream(client)
    names = [event["type"].removeprefix("response.") for event in events]
    assert names == [
        *("created", "in_progress", "output_item.added", "content_part.added"),
        *["output_text.delta"] * 5,
        *("output_text.done", "content_part.done", "output_item.done", "completed"),
    ]
    assert "".join(event["delta"] for event in events if event["type"].endswith(".delta")) == "hello"
    assert (events[0]["response"]["status"], events[0]["response"]["output"]) == ("in_progress", [])
    final = events[-1]["response"]
    assert final["output"] == [events[-2]["item"]]
    assert final["usage"]["output_tokens"] == 5


def test_reasoning_text_and_calls_are_items(client: TestClient, pool: FakePool) -> None:
    pool.text = f"<think>hm</think>well{CALL}{CALL}"
    whole = ask(client, tools=[NOW]).to_dict()
    kinds = [item["type"] for item in whole["output"]]  # type: ignore[attr-defined]
    assert kinds == ["reasoning", "message", "function_call", "function_call"]
    reasoning, message, call, _ = whole["output"]  # type: ignore[misc]
    assert reasoning["content"][0]["text"] == "hm"
    assert message["content"][0]["text"] == "well"
    assert (call["name"], call["arguments"]) == ("now", '{"a": [1, 2]}')
    assert whole["usage"]["output_tokens_details"] == {"reasoning_tokens": 2}  # type: ignore[index]

    events = stream(client, tools=[NOW])
    final = events[-1]["response"]
    assert without_names(final["output"]) == without_names(whole["output"])  # type: ignore[arg-type]
    done = [event["item"] for event in events if event["type"] == "response.output_item.done"]
    assert done == final["output"]
    for index, item in enumerate(final["output"]):
        own = [event for event in events if event.get("output_index") == index]
        assert (own[0]["type"], own[0]["item"]["id"]) == ("response.output_item.added", item["id"])
        text = "".join(event["delta"] for event in own if event["type"].endswith(".delta"))
        assert text == (item["arguments"] if item["type"] == "function_call" else item["content"][0]["text"])


def test_a_conversation_goes_on_with_what_was_answered(client: TestClient, pool: FakePool) -> None:
    pool.text = f"<think>hm</think>well{CALL}"
    first = ask(client, tools=[NOW])
    items = [item.to_dict() for item in first.output]
    output = {"type": "function_call_output", "call_id": items[-1]["call_id"], "output": "noon"}
    ask(client, input=[{"role": "user", "content": "hi"}, *items, output], tools=[NOW])
    assert prompt(pool) == "user: hi assistant: well tool: noon "


def test_log_probabilities_are_those_of_the_text(client: TestClient, pool: FakePool) -> None:
    pool.text = "<think>hm</think>well"
    asked = {"top_logprobs": 0, "include": ["message.output_text.logprobs"]}
    told = [ask(client, **asked).to_dict()["output"][1]["content"][0]]  # type: ignore[index]
    events = stream(client, **asked)
    told.append(events[-1]["response"]["output"][1]["content"][0])
    for content in told:
        assert "".join(each["token"] for each in content["logprobs"]) == "well"
    deltas = [event for event in events if event["type"] == "response.output_text.delta"]
    assert [entry for event in deltas for entry in event["logprobs"]] == told[1]["logprobs"]


@pytest.mark.parametrize(
    ("choice", "forces"),
    [
        ("auto", False),
        ("required", True),
        ({"type": "function", "name": "now"}, True),
        ({"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "now"}]}, True),
    ],
)
def test_tools_are_chosen(client: TestClient, pool: FakePool, choice: Any, forces: bool) -> None:
    other = {**NOW, "name": "later"}
    response = ask(client, tools=[NOW, other], tool_choice=choice)
    form = pool.requests[0].sampling.structured_output
    assert (form is not None) == forces
    if forces and choice != "required":
        assert form is not None
        assert "later" not in form.text
    assert [tool.name for tool in response.tools] == ["now", "later"]  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("kind", "form"),
    [
        ({"type": "text"}, None),
        ({"type": "json_object"}, "json_object"),
        ({"type": "json_schema", "name": "a", "schema": {"type": "object"}}, "json_schema"),
    ],
)
def test_forms(client: TestClient, pool: FakePool, kind: dict[str, Any], form: str | None) -> None:
    response = ask(client, text={"format": kind})
    wanted = pool.requests[0].sampling.structured_output
    assert (None if wanted is None else wanted.kind) == form
    assert response.text is not None
    assert response.text.to_dict()["format"] == kind


@pytest.mark.parametrize(("effort", "thinks"), [("none", False), ("high", True)])
def test_an_effort_is_what_the_template_makes_of_it(
    client: TestClient, pool: FakePool, effort: str, thinks: bool
) -> None:
    ask(client, reasoning={"effort": effort, "summary": "auto"})
    assert prompt(pool).endswith("thinks") == thinks


@pytest.mark.parametrize(
    ("extra", "param"),
    [
        ({"input": []}, "input"),
        ({"input": 3}, "input"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input"),
        ({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]}, "input"),
        ({"input": [{"type": "function_call_output", "call_id": "c", "output": "x"}]}, "input"),
        ({"input": [{"type": "function_call", "call_id": "c", "name": "f", "arguments": "{"}]}, "input"),
        ({"input": "a" * 500}, "input"),
        ({"max_output_tokens": 1000}, "max_output_tokens"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"tools": [{"type": "web_search"}]}, "tools"),
        ({"tools": [NOW], "tool_choice": {"type": "function", "name": "then"}}, "tool_choice"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [NOW], "text": {"format": {"type": "json_object"}}}, "tool_choice"),
        ({"text": {"format": {"type": "grammar"}}}, "text"),
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"background": True}, "background"),
        ({"truncation": "auto"}, "truncation"),
        ({"reasoning": {"summary": "detailed"}}, "reasoning"),
        ({"include": ["file_search_call.results"]}, "include"),
        ({"top_logprobs": 99}, "top_logprobs"),
        ({"n": 2}, "n"),
        ({"stop": [""]}, "stop"),
        ({"temperature": -1.0}, "temperature"),
        ({"chat_template_kwargs": {"tokenize": True}}, "chat_template_kwargs"),
        ({"stream_options": {}}, "stream_options"),
    ],
)
def test_what_cannot_be_had_names_its_parameter(client: TestClient, extra: dict[str, Any], param: str) -> None:
    answer = client.post("/v1/responses", json={"input": "hi", **extra})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param), answer.text
    schemas.ErrorAnswer.model_validate_json(answer.content, strict=True)


def test_a_tool_that_cannot_be_had_is_named(client: TestClient) -> None:
    answer = client.post("/v1/responses", json={"input": "hi", "tools": [{"type": "web_search"}]})
    assert "'web_search'" in answer.json()["error"]["message"]


def test_an_effort_that_the_template_does_not_read_is_refused(pool: FakePool) -> None:
    client = TestClient(create_app(fake_context(pool=pool)))
    answer = client.post("/v1/responses", json={"input": "hi", "reasoning": {"effort": "high"}})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "reasoning")


def test_what_goes_wrong_in_a_stream_is_told_in_it(client: TestClient, pool: FakePool) -> None:
    pool.error = "no replica could be had"
    events = stream(client)
    assert events[-1]["type"] == "response.failed"
    assert events[-1]["response"]["error"]["code"] == "server_error"
    assert client.post("/v1/responses", json={"input": "hi"}).status_code == 503


def test_with_openai_s_client(client: TestClient, pool: FakePool) -> None:
    pool.text = '{"a": 1}'
    made = openai.OpenAI(base_url="http://testserver/v1", api_key="none", http_client=client, max_retries=0)
    assert made.responses.create(model="fake", input="hi").output_text == pool.text
    form: Any = {"format": {"type": "json_schema", "name": "a", "schema": {"type": "object"}}}
    with made.responses.stream(model="fake", input="hi", text=form) as events:
        assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == pool.text
        assert events.get_final_response().output_text == pool.text
    with pytest.raises(openai.BadRequestError) as refused:
        made.responses.create(model="fake", input="hi", previous_response_id="resp_1")
    assert refused.value.param == "previous_response_id"
