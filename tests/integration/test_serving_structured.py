"""Forms and tools as OpenAI's own client sees them, with a real server and a model that knows nothing."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from json_model import save_json_model
from jsonschema import Draft202012Validator
from served import SMALL_ENGINE, ServedModel, served

TEMPLATE = """{#- <tool_call> #}{% for tool in tools or [] %}{{ tool | tojson }}
{% endfor %}{% for message in messages %}{{ message.role }}: {{ message.content }}
{% endfor %}assistant: """
SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 6}, "ages": {"type": "array", "items": {"enum": [1, 2]}}},
    "required": ["name", "ages"],
    "additionalProperties": False,
}
SCHEMA["properties"]["ages"]["maxItems"] = 3  # type: ignore[index]
TOOL: dict[str, Any] = {"type": "function", "function": {"name": "register", "parameters": SCHEMA}}
ASKED: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 300}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServedModel]:
    folder: Path = tmp_path_factory.mktemp("served")
    template = folder / "chat.jinja"
    template.write_text(TEMPLATE)
    model = save_json_model(folder / "model")
    with served(model, "model.name=tiny", f"model.chat_template={template}", *SMALL_ENGINE) as running:
        running.wait_for(lambda: running.metric("rlserve:ready_replicas") == 1, "the replica is ready")
        yield running


@pytest.fixture(scope="module")
def client(server: ServedModel) -> Iterator[openai.OpenAI]:
    with server.client() as made:
        yield made


def test_answers_are_valid_by_the_schema(client: openai.OpenAI) -> None:
    form: Any = {"type": "json_schema", "json_schema": {"name": "person", "schema": SCHEMA, "strict": True}}
    answer = client.chat.completions.create(**ASKED, n=4, seed=1, response_format=form)
    for choice in answer.choices:
        assert choice.finish_reason == "stop"
        Draft202012Validator(SCHEMA).validate(json.loads(choice.message.content or ""))


def test_completions_keep_to_a_form_too(client: openai.OpenAI) -> None:
    wanted = {"structured_outputs": {"regex": "[0-9]{3}-[a-f]{2}"}}
    answer = client.completions.create(model="tiny", prompt="x", max_tokens=60, n=3, extra_body=wanted)
    assert all(re.fullmatch("[0-9]{3}-[a-f]{2}", choice.text) for choice in answer.choices)


def test_a_mistake_in_a_form_is_told_to_its_client_alone(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="regex parse error"):
        client.completions.create(model="tiny", prompt="x", extra_body={"structured_outputs": {"regex": "(a"}})
    form: Any = {"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "bogus"}}}
    with pytest.raises(openai.BadRequestError, match="Invalid type: bogus"):
        client.chat.completions.create(**ASKED, response_format=form)
    assert client.completions.create(model="tiny", prompt="x", max_tokens=2).choices


def test_calls_are_forced_and_their_arguments_valid(client: openai.OpenAI) -> None:
    named: Any = {"type": "function", "function": {"name": "register"}}
    answer = client.chat.completions.create(**ASKED, n=4, tools=[TOOL], tool_choice=named)  # type: ignore[list-item]
    for choice in answer.choices:
        assert choice.finish_reason == "tool_calls"
        assert choice.message.content is None
        (call,) = choice.message.tool_calls or []
        assert call.type == "function"
        assert call.function.name == "register"
        Draft202012Validator(SCHEMA).validate(json.loads(call.function.arguments))


def test_streamed_calls_are_those_of_the_whole_answer(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {**ASKED, "tools": [TOOL], "tool_choice": "required", "seed": 5}
    whole = client.chat.completions.create(**asked).choices[0]
    with client.chat.completions.stream(**asked) as stream:
        streamed = stream.get_final_completion().choices[0]
    expected = [call.function for call in whole.message.tool_calls or []]  # type: ignore[union-attr]
    found = [call.function for call in streamed.message.tool_calls or []]
    assert [(call.name, call.arguments) for call in found] == [(call.name, call.arguments) for call in expected]
    assert streamed.finish_reason == whole.finish_reason == "tool_calls"
