"""OpenAI's responses and Anthropic's messages as their own clients see them, with a real server and a model that knows
nothing."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anthropic
import openai
import pytest
from json_model import save_json_model
from jsonschema import Draft202012Validator
from pydantic import BaseModel
from served import SMALL_ENGINE, ServedModel, served

KEY = "key-of-two-clients"
TEMPLATE = """{#- <tool_call> #}{% for tool in tools or [] %}{{ tool | tojson }}
{% endfor %}{% for message in messages %}{{ message.role }}: {{ message.content }}
{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"""
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"ages": {"type": "array", "items": {"enum": [1, 2]}, "maxItems": 3}},
    "required": ["ages"],
    "additionalProperties": False,
}
QUESTION: Any = [{"role": "user", "content": "hi"}]


class Answered(BaseModel):
    """What an answer must be."""

    yes: bool


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServedModel]:
    folder: Path = tmp_path_factory.mktemp("served")
    (folder / "chat.jinja").write_text(TEMPLATE)
    model = save_json_model(folder / "model")
    overrides = ("model.name=tiny", f"model.chat_template={folder / 'chat.jinja'}", *SMALL_ENGINE)
    with served(model, *overrides, key=KEY) as running:
        running.wait_for(lambda: running.metric("rlserve:ready_replicas") == 1, "the replica is ready")
        yield running


@pytest.fixture(scope="module")
def responses(server: ServedModel) -> Iterator[openai.resources.Responses]:
    with server.client() as made:
        yield made.responses


@pytest.fixture(scope="module")
def messages(server: ServedModel) -> Iterator[anthropic.resources.Messages]:
    with anthropic.Anthropic(base_url=server.url, api_key=KEY, max_retries=0, timeout=120) as made:
        yield made.messages


def test_a_streamed_response_says_what_the_whole_one_does(responses: openai.resources.Responses) -> None:
    asked: dict[str, Any] = {"model": "tiny", "input": QUESTION, "max_output_tokens": 30, "extra_body": {"seed": 3}}
    whole = responses.create(**asked, instructions="rules")
    assert whole.usage is not None
    assert whole.output_text
    pieces, final = "", None
    for event in responses.create(**asked, instructions="rules", stream=True):
        pieces += event.delta if event.type == "response.output_text.delta" else ""
        if event.type in ("response.completed", "response.incomplete"):
            final = event.response
    assert final is not None
    assert pieces == final.output_text == whole.output_text
    assert final.usage is not None
    assert (final.status, final.usage.output_tokens) == (whole.status, whole.usage.output_tokens)


def test_a_response_calls_functions_and_goes_on(responses: openai.resources.Responses) -> None:
    tools: Any = [{"type": "function", "name": "register", "parameters": SCHEMA, "strict": True}]
    asked: dict[str, Any] = {"model": "tiny", "tools": tools, "tool_choice": "required", "parallel_tool_calls": False}
    with responses.stream(**asked, input=QUESTION) as events:
        arguments = "".join(e.delta for e in events if e.type == "response.function_call_arguments.delta")
        (call,) = events.get_final_response().output
    assert call.type == "function_call"
    assert call.arguments == arguments
    Draft202012Validator(SCHEMA).validate(json.loads(arguments))
    result: Any = {"type": "function_call_output", "call_id": call.call_id, "output": "done"}
    goes_on: Any = {"ignore_eos": True}  # it draws at random, the end of its answer too
    answer = responses.create(
        model="tiny", input=[*QUESTION, call, result], tools=tools, max_output_tokens=5, extra_body=goes_on
    )
    assert answer.usage is not None
    assert answer.usage.output_tokens == 5


def test_a_response_of_a_given_form(responses: openai.resources.Responses) -> None:
    answer = responses.parse(model="tiny", input=QUESTION, text_format=Answered)
    assert isinstance(answer.output_parsed, Answered)


def test_a_streamed_message_says_what_the_whole_one_does(messages: anthropic.resources.Messages) -> None:
    asked: dict[str, Any] = {"model": "tiny", "messages": QUESTION, "max_tokens": 30, "system": "rules"}
    asked["extra_body"] = {"temperature": 0.0}
    whole = messages.create(**asked)
    with messages.stream(**asked) as events:
        text = "".join(events.text_stream)
        final = events.get_final_message()
    assert [block.to_dict() for block in final.content] == [block.to_dict() for block in whole.content]
    assert text == "".join(block.text for block in whole.content if block.type == "text")
    assert (final.stop_reason, final.usage.output_tokens) == (whole.stop_reason, whole.usage.output_tokens)
    num_tokens = messages.count_tokens(model="tiny", messages=QUESTION, system="rules").input_tokens
    for usage in (whole.usage, final.usage):
        assert usage.input_tokens + (usage.cache_read_input_tokens or 0) == num_tokens


def test_a_message_calls_tools_and_goes_on(messages: anthropic.resources.Messages) -> None:
    tools: Any = [{"name": "register", "input_schema": SCHEMA}]
    asked: dict[str, Any] = {"model": "tiny", "tools": tools, "max_tokens": 300}
    choice: Any = {"type": "any", "disable_parallel_tool_use": True}
    with messages.stream(**asked, messages=QUESTION, tool_choice=choice) as events:
        message = events.get_final_message()
    (call,) = message.content
    assert call.type == "tool_use"
    assert message.stop_reason == "tool_use"
    Draft202012Validator(SCHEMA).validate(call.input)
    result: Any = {"type": "tool_result", "tool_use_id": call.id, "content": "done"}
    turns: Any = [{"role": "assistant", "content": message.content}, {"role": "user", "content": [result]}]
    answer = messages.create(model="tiny", tools=tools, max_tokens=5, messages=[*QUESTION, *turns])
    if answer.stop_reason == "end_turn":  # drawn at random, as the answer is
        assert 1 <= answer.usage.output_tokens <= 5
    else:
        assert (answer.stop_reason, answer.usage.output_tokens) == ("max_tokens", 5)


def test_errors_are_those_that_the_clients_know(
    server: ServedModel, responses: openai.resources.Responses, messages: anthropic.resources.Messages
) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        responses.create(model="tiny", input=QUESTION, previous_response_id="resp_1")
    assert refused.value.param == "previous_response_id"
    bad: Any = {"format": {"type": "json_schema", "name": "a", "schema": {"type": "nothing"}}}
    with pytest.raises(openai.BadRequestError) as refused:
        responses.create(model="tiny", input=QUESTION, text=bad)
    assert refused.value.param == "text"
    with pytest.raises(anthropic.NotFoundError) as unknown:
        messages.create(model="other", messages=QUESTION, max_tokens=3)
    assert unknown.value.request_id
    stranger = anthropic.Anthropic(base_url=server.url, auth_token="wrong", api_key=None, max_retries=0)
    with pytest.raises(anthropic.AuthenticationError):
        stranger.messages.create(model="tiny", messages=QUESTION, max_tokens=3)
