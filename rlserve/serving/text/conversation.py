"""Conversations as prompts, by the model's chat template: in a sandbox, and within a time limit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rlserve.errors import UserError
from rlserve.serving.text.time_limit import run_within

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class ConversationRenderer:
    """
    Args:
        tokenizer: renders in Jinja's immutable sandbox.
        template: in place of the tokenizer's own.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, template: str | None, timeout_s: float) -> None:
        self._tokenizer = tokenizer
        self._template = template or tokenizer.chat_template
        self._timeout_s = timeout_s

    @property
    def template(self) -> str:
        """Its text, or texts; empty where there is none."""
        template = self._template
        return "\n".join(template.values()) if isinstance(template, dict) else template or ""

    @property
    def has_template(self) -> bool:
        """Whether conversations can be rendered at all."""
        return self._template is not None

    async def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        arguments: Mapping[str, Any],
        *,
        goes_on: bool | None = None,
        opens_answer: bool = True,
    ) -> str:
        """The prompt of a conversation.

        Args:
            arguments: what the template is given besides.
            goes_on: whether the last message is to be gone on with; None: no.
            opens_answer: whether the beginning of the answer's message follows, where it does not go on.

        Raises:
            UserError: there is no template, or it refuses the conversation.
            DeadlineExceededError: rendering took too long.
        """
        from jinja2 import TemplateError

        if self._template is None:
            raise UserError("the model has no chat template: use /v1/completions, or set model.chat_template")

        def render() -> str:
            text: str = self._tokenizer.apply_chat_template(
                list(messages),
                chat_template=self._template,
                tokenize=False,
                add_generation_prompt=opens_answer and not goes_on,
                continue_final_message=bool(goes_on),
                **arguments,
            )
            return text

        try:
            return await run_within(render, self._timeout_s, "rendering the conversation")
        except (
            TemplateError,
            ValueError,
            TypeError,
            KeyError,
            AttributeError,
            OverflowError,
            ArithmeticError,
        ) as error:
            raise UserError(f"the chat template refuses the conversation: {error}") from error
