"""What an environment of the verifiers package brings to the data of a run, and which models cannot have its tools."""

from __future__ import annotations

import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from rlserve.config.tree import ModelConfig, RunConfig
from rlserve.controller.preparation import verifiers_data
from rlserve.controller.preparation.verifiers_data import data_of_verifiers
from rlserve.errors import ConfigurationError
from rlserve.rollout.config import DataConfig
from rlserve.rollout.environments.config import EnvironmentConfig
from rlserve.rollout.environments.verifiers.data import VerifiersData

TOOLS = [{"type": "function", "function": {"name": "add", "description": "", "parameters": {}}}]
WITH_TOOLS: Any = SimpleNamespace(chat_template="{{ tools }} answer by <tool_call>{...}</tool_call>")
WITHOUT: Any = SimpleNamespace(chat_template="{{ messages }}")
ANOTHER_FORM: Any = SimpleNamespace(chat_template="{{ tools }} answer by [CALL]")


def data_with(monkeypatch: pytest.MonkeyPatch, found: VerifiersData, tokenizer: Any, **data: Any) -> DataConfig:
    monkeypatch.setattr(verifiers_data, "export_data", lambda environment: found)
    config = RunConfig(
        model=ModelConfig(path="/m"),
        data=DataConfig(path="verifiers:game", apply_chat_template=True, **data),
        environment=EnvironmentConfig(name="verifiers:game"),
    )
    return data_of_verifiers(config, tokenizer)


def brought(*, tools: list[dict[str, Any]] | None = None, max_turns: int = 3, held_out: Path | None = None) -> Any:
    return VerifiersData(train=Path("/d/train.jsonl"), held_out=held_out, tools=tools or [], max_turns=max_turns)


def test_prompts_held_out_prompts_and_tools_are_the_environments(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    plain = data_with(monkeypatch, brought(), WITHOUT, chat_template_kwargs={"a": 1})
    assert (plain.path, plain.held_out_path, plain.chat_template_kwargs) == ("/d/train.jsonl", None, {"a": 1})
    held_out = brought(tools=TOOLS, held_out=Path("/d/held_out.jsonl"))
    found = data_with(monkeypatch, held_out, WITH_TOOLS, chat_template_kwargs={"a": 1})
    assert found.held_out_path == "/d/held_out.jsonl"
    assert found.chat_template_kwargs == {"a": 1, "tools": TOOLS}
    assert data_with(monkeypatch, held_out, WITH_TOOLS, held_out_path="own.jsonl").held_out_path == "own.jsonl"
    assert caplog.messages == []
    data_with(monkeypatch, brought(max_turns=10), WITHOUT)
    assert caplog.messages == ["environment.max_turns=8 cuts conversations of verifiers:game, which may have 10 turns"]


@pytest.mark.parametrize("tokenizer", [WITHOUT, ANOTHER_FORM])
def test_tools_need_a_template_that_asks_for_calls_as_they_are_read(
    monkeypatch: pytest.MonkeyPatch, tokenizer: Any
) -> None:
    with pytest.raises(ConfigurationError, match=r"model.path: verifiers:game has tools \(add\), and the chat"):
        data_with(monkeypatch, brought(tools=TOOLS), tokenizer)
