"""Which tokens end an answer, and what is said about them."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from rollout_tokenizers import character_tokenizer

from rlserve.rollout.config import DataConfig
from rlserve.rollout.end_tokens import EndTokens, find_end_tokens

TEMPLATE = "{% for message in messages %}<{{ message.role }}>{{ message.content }}<turn>\n{% endfor %}"
EOS = 1


def chat_tokenizer(template: str = TEMPLATE) -> Any:
    """One whose template ends a turn with a special token of its own."""
    tokenizer = character_tokenizer(chat_template=template)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<turn>"]})
    return tokenizer


def find(tokenizer: Any, of_model: tuple[int, ...], *, chat: bool = False, vocab_size: int = 1000) -> EndTokens:
    config = DataConfig(path="a", apply_chat_template=chat)
    return find_end_tokens(tokenizer, config, of_model=of_model, vocab_size=vocab_size)


def test_the_end_of_a_turn_in_the_template_ends_an_answer(caplog: pytest.LogCaptureFixture) -> None:
    tokenizer = chat_tokenizer()
    turn = tokenizer.convert_tokens_to_ids("<turn>")
    with caplog.at_level(logging.INFO):
        assert find(tokenizer, (EOS,), chat=True) == EndTokens(of_model=(EOS,), added=(turn,))
    assert f"answers also end at '<turn>' ({turn}), the end of a turn in the chat template" in caplog.text
    assert "the model's files name '<eos>' (1)" in caplog.text


def test_without_the_template_its_turns_do_not_matter() -> None:
    assert find(chat_tokenizer(), (EOS,)).added == ()


def test_the_tokenizers_end_of_text_ends_an_answer() -> None:
    assert find(character_tokenizer(), (5, 2000)) == EndTokens(of_model=(5,), added=(EOS,))
    assert find(character_tokenizer(), (5, EOS)).all == (5, EOS)


@pytest.mark.parametrize(
    "template",
    [
        "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}",
        "{{ raise_exception('never') }}",
        "{% for message in messages if message.role == 'user' %}{{ message.content }}<turn>{% endfor %}",
    ],
    ids=["plain text", "refuses", "without answers"],
)
def test_a_template_without_an_end_of_turn_adds_nothing(template: str) -> None:
    assert find(chat_tokenizer(template), (EOS,), chat=True).added == ()


def test_a_token_beyond_the_vocabulary_is_said_and_left_out(caplog: pytest.LogCaptureFixture) -> None:
    assert find(chat_tokenizer(), (EOS,), chat=True, vocab_size=10).added == ()
    assert "beyond the model's vocabulary of 10" in caplog.text


def test_no_end_token_at_all_is_said(caplog: pytest.LogCaptureFixture) -> None:
    tokenizer = character_tokenizer()
    tokenizer.eos_token = None
    assert find(tokenizer, ()).all == ()
    assert "every answer runs to rollout.max_tokens" in caplog.text
