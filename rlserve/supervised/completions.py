"""Rows of demonstrations: a prompt with its completion, or a conversation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rlserve.rollout.config import DataConfig
from rlserve.rollout.dataset.base import BadRowError
from rlserve.rollout.dataset.fields import as_prompt, find
from rlserve.supervised.base import RowReader, Sample
from rlserve.supervised.chat import ASSISTANT, USER, Said, messages_of
from rlserve.supervised.text_encoder import TextEncoder


class CompletionReader(RowReader):
    """One sample a row."""

    samples_per_row = 1

    def __init__(self, encoder: TextEncoder, config: DataConfig) -> None:
        self._encoder = encoder
        self._config = config

    def read(self, values: Mapping[str, Any]) -> tuple[Sample, ...]:
        config = self._config
        if config.messages_field in values:
            found = as_prompt(values[config.messages_field], config.messages_field, apply_chat_template=self._chats)
            if isinstance(found, str):
                raise BadRowError(f"{config.messages_field!r} must be a list of chat messages, got text")
            return (self._encoder.conversation(found),)
        prompt = as_prompt(
            find(values, config.prompt_field, "prompt_field"), config.prompt_field, apply_chat_template=self._chats
        )
        completion = as_prompt(
            find(values, config.completion_field, "completion_field"),
            config.completion_field,
            apply_chat_template=self._chats,
        )
        return (said_after(self._encoder, prompt, completion, chats=self._chats),)

    @property
    def _chats(self) -> bool:
        return self._config.apply_chat_template


def said_after(encoder: TextEncoder, prompt: Said, said: Said, *, chats: bool) -> Sample:
    """What is said after a prompt; with ``chats`` texts are a user's and an assistant's messages."""
    if not chats:
        assert isinstance(prompt, str), "without a template, rows are checked to be text"
        assert isinstance(said, str), "without a template, rows are checked to be text"
        return encoder.completion(prompt, said)
    given = messages_of(prompt, USER)
    return encoder.conversation((*given, *messages_of(said, ASSISTANT)), num_given=len(given))
