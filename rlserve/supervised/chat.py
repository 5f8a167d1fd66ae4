"""Conversations in a tokenizer's chat template, as the configuration of the data says."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rlserve.errors import DataError
from rlserve.rollout.config import DataConfig
from rlserve.rollout.dataset.base import BadRowError
from rlserve.rollout.groups import Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

USER, ASSISTANT = "user", "assistant"

Said = str | Sequence[Message]
"""Text, or messages."""


class Chat:
    """Puts conversations together and renders them."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, config: DataConfig) -> None:
        """
        Raises:
            DataError: a chat template is asked for, and the tokenizer has none.
        """
        if config.apply_chat_template and tokenizer.chat_template is None:
            raise DataError("data.apply_chat_template is on, but the tokenizer has no chat template; turn it off")
        self._tokenizer = tokenizer
        self._config = config

    def given(self, messages: Sequence[Message]) -> tuple[Message, ...]:
        """The messages that a conversation begins with, a system prompt before them if there is to be one."""
        system = self._config.system_prompt
        if system is None or any(message["role"] == "system" for message in messages):
            return tuple(messages)
        return ({"role": "system", "content": system}, *messages)

    def render(self, messages: Sequence[Message], *, add_generation_prompt: bool = False) -> str:
        """A conversation as the model reads it.

        Raises:
            BadRowError: the template refuses it.
        """
        from jinja2 import TemplateError

        try:
            text: str = self._tokenizer.apply_chat_template(
                list(messages),
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                **self._config.chat_template_kwargs,
            )
        except (TemplateError, ValueError, TypeError) as error:
            roles = ", ".join(message["role"] for message in messages)
            raise BadRowError(f"the chat template refuses the conversation ({roles}): {error}") from error
        return text


def messages_of(said: Said, role: str) -> tuple[Message, ...]:
    """What was said as messages; a text is one of this role."""
    return ({"role": role, "content": said},) if isinstance(said, str) else tuple(said)
