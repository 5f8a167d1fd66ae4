"""From a prompt of the data to the text that the model reads, and to its tokens."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from rlserve.errors import DataError
from rlserve.rollout.config import DataConfig
from rlserve.rollout.groups import Message, PromptGroup
from rlserve.rollout.prompt_rows import Prompt, PromptRow

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

PROMPT_TOO_LONG = "prompt_too_long"
PROMPT_EMPTY = "prompt_empty"


class PromptEncoder:
    """Renders and tokenises prompts."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, config: DataConfig, *, max_prompt_tokens: int) -> None:
        """
        Raises:
            DataError: a chat template is asked for, and the tokenizer has none.
        """
        if config.apply_chat_template and tokenizer.chat_template is None:
            raise DataError("data.apply_chat_template is on, but the tokenizer has no chat template; turn it off")
        for name in config.chat_template_kwargs:
            if name not in str(tokenizer.chat_template):
                logger.warning("data.chat_template_kwargs: the tokenizer's chat template does not look at %s", name)
        self._tokenizer = tokenizer
        self._config = config
        self.max_prompt_tokens = max_prompt_tokens

    def group(self, row: PromptRow, *, group_id: str, position: int) -> PromptGroup:
        """The prompt group of a row; one that cannot be used says why in ``drop_reason``.

        Raises:
            DataError: the chat template refuses the conversation.
        """
        messages = self._conversation(row.prompt)
        rendered = row.prompt if messages is None else self._render(messages, row.place)
        assert isinstance(rendered, str), "without a template, rows are checked to be text"
        # The special tokens around a prompt come from the chat template, or, without one, from the tokenizer.
        token_ids = tuple(self._tokenizer(rendered, add_special_tokens=messages is None).input_ids)
        return PromptGroup(
            id=group_id,
            position=position,
            row=row.row,
            prompt_text=_said_last(row.prompt),
            prompt_token_ids=token_ids,
            answer=row.answer,
            prompt_rendered=rendered,
            messages=messages,
            columns=row.columns,
            drop_reason=self._drop_reason(token_ids),
        )

    def check_renders(self, rows: Iterable[PromptRow]) -> None:
        """Render some rows: one of each shape, since what a template refuses is an order of roles.

        Raises:
            DataError: the chat template refuses a conversation.
        """
        for row in rows:
            messages = self._conversation(row.prompt)
            if messages is not None:
                self._render(messages, row.place)

    def _conversation(self, prompt: Prompt) -> tuple[Message, ...] | None:
        """What the chat template is given; None without one."""
        if not self._config.apply_chat_template:
            return None
        messages = ({"role": "user", "content": prompt},) if isinstance(prompt, str) else prompt
        if self._config.system_prompt is None or any(message["role"] == "system" for message in messages):
            return messages
        return ({"role": "system", "content": self._config.system_prompt}, *messages)

    def _render(self, messages: tuple[Message, ...], place: str) -> str:
        from jinja2 import TemplateError

        # A conversation that ends with the assistant's words is one that the policy goes on with.
        goes_on = messages[-1]["role"] == "assistant"
        try:
            text: str = self._tokenizer.apply_chat_template(
                list(messages),
                tokenize=False,
                add_generation_prompt=not goes_on,
                continue_final_message=goes_on,
                **self._config.chat_template_kwargs,
            )
        except (TemplateError, ValueError, TypeError) as error:
            roles = ", ".join(message["role"] for message in messages)
            raise DataError(f"{place}: the chat template refuses the conversation ({roles}): {error}") from error
        return text

    def _drop_reason(self, token_ids: tuple[int, ...]) -> str | None:
        if not token_ids:
            return PROMPT_EMPTY
        return PROMPT_TOO_LONG if len(token_ids) > self.max_prompt_tokens else None


def _said_last(prompt: Prompt) -> str:
    """What the user said last, or else the last message."""
    if isinstance(prompt, str):
        return prompt
    said = [message["content"] for message in prompt if message["role"] == "user"] or [prompt[-1]["content"]]
    return _text_of(said[-1])


def _text_of(content: Any) -> str:
    """The text of a message, which may be in parts."""
    if isinstance(content, list):
        return "".join(part["text"] for part in content if isinstance(part, dict) and isinstance(part.get("text"), str))
    return content if isinstance(content, str) else ""
