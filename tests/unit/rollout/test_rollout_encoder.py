"""Prompts as the model reads them, with a chat template and without."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
from rollout_data_files import load, write_jsonl
from rollout_tokenizers import CHARACTERS, character_tokenizer

from rlserve.errors import ConfigurationError, DataError
from rlserve.rollout.config import DataConfig
from rlserve.rollout.encoder import PromptEncoder
from rlserve.rollout.groups import PromptGroup

TEMPLATE = (
    "{% for message in messages %}{% if message.role == 'tool' %}{{ raise_exception('no tools') }}{% endif %}"
    "<{{ message.role }}>{{ message.content }}{% if not loop.last %};{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% if think is defined and not think %}quiet {% endif %}{% endif %}"
)
USER = {"role": "user", "content": "1+1="}


def group(folder: Path, prompt: Any, **changes: Any) -> PromptGroup:
    """The first held-out prompt of data with one row."""
    path = write_jsonl(folder / "a.jsonl", [{"prompt": prompt, "answer": "2"}])
    changes = {"apply_chat_template": True, "held_out_path": str(path)} | changes
    return load(path, template=TEMPLATE, **changes).held_out[0]


@pytest.mark.parametrize(
    ("prompt", "changes", "rendered"),
    [
        ("1+1=", {}, "<user>1+1=<assistant>"),
        ([USER], {}, "<user>1+1=<assistant>"),
        ("1+1=", {"system_prompt": "be brief"}, "<system>be brief;<user>1+1=<assistant>"),
        ([USER], {"system_prompt": "be brief"}, "<system>be brief;<user>1+1=<assistant>"),
        (
            [{"role": "system", "content": "own"}, USER],
            {"system_prompt": "be brief"},
            "<system>own;<user>1+1=<assistant>",
        ),
        ("1+1=", {"chat_template_kwargs": {"think": False}}, "<user>1+1=<assistant>quiet "),
        ("1+1=", {"chat_template_kwargs": {"think": True}}, "<user>1+1=<assistant>"),
        ([USER, {"role": "assistant", "content": "so"}], {}, "<user>1+1=;<assistant>so"),
        ("1+1=", {"apply_chat_template": False}, "1+1="),
    ],
)
def test_what_the_model_reads(tmp_path: Path, prompt: Any, changes: dict[str, Any], rendered: str) -> None:
    found = group(tmp_path, prompt, **changes)
    assert found.prompt_rendered == rendered
    assert found.prompt_text == "1+1="
    assert found.prompt_token_ids == tuple(CHARACTERS.index(letter) + 2 for letter in rendered if letter in CHARACTERS)
    if changes.get("apply_chat_template", True):
        assert found.messages is not None
        assert [message["role"] for message in found.messages][-1] in ("user", "assistant")
        assert len(found.messages) == rendered.count(";") + 1
    else:
        assert found.messages is None


def test_absent_fields_of_a_message_are_not_null_to_the_template(tmp_path: Path) -> None:
    """In Parquet every message has every field."""
    found = group(tmp_path, [{"role": "user", "content": "1+1=", "tool_calls": None, "name": "me"}])
    assert found.messages == ({"role": "user", "content": "1+1=", "name": "me"},)


def test_content_in_parts_is_text_to_the_reward(tmp_path: Path) -> None:
    parts = [{"type": "text", "text": "1+"}, {"type": "image"}, {"type": "text", "text": "1="}]
    assert group(tmp_path, [{"role": "user", "content": parts}]).prompt_text == "1+1="


def test_a_conversation_that_the_template_refuses_is_named_before_the_run(tmp_path: Path) -> None:
    tool = {"role": "tool", "content": "2"}
    path = write_jsonl(
        tmp_path / "a.jsonl", [{"prompt": prompt, "answer": "2"} for prompt in ([USER], [USER], [USER, tool], [USER])]
    )
    with pytest.raises(DataError, match=r"a\.jsonl:3: the chat template refuses .*\(user, tool\): no tools"):
        load(path, template=TEMPLATE, apply_chat_template=True)


def test_a_chat_template_that_is_not_there_is_refused() -> None:
    config = DataConfig(path="a", apply_chat_template=True)
    with pytest.raises(DataError, match="the tokenizer has no chat template"):
        PromptEncoder(character_tokenizer(), config, max_prompt_tokens=99)


def test_an_argument_that_the_template_does_not_look_at_is_said(caplog: pytest.LogCaptureFixture) -> None:
    config = DataConfig(path="a", apply_chat_template=True, chat_template_kwargs={"enable_thinkng": False, "think": 1})
    with caplog.at_level(logging.WARNING):
        PromptEncoder(character_tokenizer(chat_template=TEMPLATE), config, max_prompt_tokens=99)
    assert "does not look at enable_thinkng" in caplog.text
    assert caplog.text.count("does not look at") == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"system_prompt": "x"}, "system_prompt: needs data.apply_chat_template=true"),
        ({"chat_template_kwargs": {"a": 1}}, "chat_template_kwargs: needs data.apply_chat_template=true"),
        (
            {"chat_template_kwargs": {"tokenize": True}, "apply_chat_template": True},
            "chat_template_kwargs: must not have tokenize, which is set by the run",
        ),
    ],
)
def test_settings_of_the_template_need_the_template(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        DataConfig(path="a", **changes)
