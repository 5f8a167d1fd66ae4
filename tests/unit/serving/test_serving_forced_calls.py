"""Grammars that force calls of tools: what a model that knows nothing writes is a right call."""

from __future__ import annotations

import json
from typing import Any

import pytest
from json_model import json_tokenizer, save_json_model
from jsonschema import Draft202012Validator

from rlserve.engine import Engine, EngineConfig, FinishReason, Request, SamplingParams
from rlserve.errors import UserError
from rlserve.serving.tool_parsers.base import Tool
from rlserve.serving.tool_parsers.choice import AUTO, NONE, REQUIRED, forced_calls
from rlserve.serving.tool_parsers.factory import TOOL_FORMATS

WEATHER = Tool(
    name="get_weather",
    parameters={
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 8}, "unit": {"enum": ["C", "F", 'a"b']}},
        "required": ["city"],
        "additionalProperties": False,
    },
)
NOW = Tool(name="now", parameters={"type": "object", "properties": {}, "additionalProperties": False})
TOKENIZER = json_tokenizer()


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    folder = save_json_model(tmp_path_factory.mktemp("model"))
    return Engine(folder, EngineConfig(device="cpu", dtype="float32", num_blocks=512))


def _calls(engine: Engine, name: str, choice: str, **sampling: Any) -> list[list[tuple[str, str]]]:
    """Of several answers, all of which end by themselves."""
    wanted = forced_calls(TOOL_FORMATS[name], [WEATHER, NOW], choice, several=True)
    params = SamplingParams(n=6, max_tokens=300, structured_output=wanted, **sampling)
    engine.add(Request(id="0", prompt_token_ids=(40, 41), sampling=params))
    outputs = []
    while engine.has_work:
        outputs += engine.step()
    assert outputs[0].error is None
    found = []
    for sample in outputs[0].samples:
        assert sample.finish_reason is FinishReason.STOP
        parser = TOOL_FORMATS[name].parser(lambda: "id")
        news = [parser.push(TOKENIZER.decode(sample.token_ids[:-1])), parser.end()]
        assert [each.content for each in news] == ["", ""]
        calls: list[list[str]] = []
        for delta in (delta for each in news for delta in each.calls):
            if delta.name is not None:
                calls.append([delta.name, ""])
            calls[-1][1] += delta.arguments
        found.append([(function, arguments) for function, arguments in calls])
    return found


@pytest.mark.parametrize("name", sorted(TOOL_FORMATS))
@pytest.mark.parametrize("choice", [REQUIRED, "get_weather", "now"])
def test_answers_are_calls_of_the_tools_with_arguments_by_their_schemas(engine: Engine, name: str, choice: str) -> None:
    schemas = {tool.name: tool.parameters for tool in (WEATHER, NOW)}
    answers = _calls(engine, name, choice)
    for calls in answers:
        assert len(calls) == 1 if choice != REQUIRED else calls
        for function, arguments in calls:
            assert choice in (REQUIRED, function)
            Draft202012Validator(schemas[function]).validate(json.loads(arguments))
    if choice == REQUIRED:
        assert {function for calls in answers for function, _ in calls} == set(schemas)


@pytest.mark.parametrize("choice", [AUTO, NONE])
def test_where_calls_are_free_nothing_is_forced(choice: str) -> None:
    assert forced_calls(TOOL_FORMATS["hermes"], [NOW], choice, several=True) is None


def test_a_tool_that_is_not_there_cannot_be_called() -> None:
    with pytest.raises(UserError, match="names 'later', and the tools are: now"):
        forced_calls(TOOL_FORMATS["hermes"], [NOW], "later", several=True)


def test_one_call_only_where_several_are_not_wanted() -> None:
    for tool_format in TOOL_FORMATS.values():
        assert ")*" not in tool_format.grammar([NOW], several=False)
        assert ")*" in tool_format.grammar([NOW], several=True)


def test_schemas_stay_as_they_were() -> None:
    before = json.dumps(WEATHER.parameters)
    TOOL_FORMATS["hermes"].grammar([WEATHER], several=False)
    assert json.dumps(WEATHER.parameters) == before
