"""From an environment's reply to the tokens that the model reads."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from rlserve.errors import EnvironmentFailedError
from rlserve.rollout.environments.base import Reply
from rlserve.rollout.groups import Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_QUESTION, _ANSWER = "Question", "AnswerOfTheAssistant"


class ReplyTokens:
    """Without a chat template the tokens of the text. With one, what the template puts between the model's turn and its
    next one: the end of its own message, as far as the model has not written it, the reply as messages, and the
    beginning of the next. What was said before is not rendered again."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        *,
        end_token_ids: Iterable[int],
        applies_template: bool,
        template_arguments: dict[str, Any],
    ) -> None:
        self._tokenizer = tokenizer
        self._end_token_ids = frozenset(end_token_ids)
        self._applies_template = applies_template
        self._template_arguments = template_arguments

    def __call__(self, reply: Reply, turn: Sequence[int]) -> tuple[int, ...]:
        """The tokens behind ``turn``, those of the model's last one; at least one.

        Raises:
            EnvironmentFailedError: the reply is not for this model: the message says why and names no environment.
        """
        token_ids = self._token_ids(reply, turn)
        if not token_ids:
            raise EnvironmentFailedError("its reply is not over and has no tokens")
        return token_ids

    def _token_ids(self, reply: Reply, turn: Sequence[int]) -> tuple[int, ...]:
        if reply.token_ids is not None:
            wrong = next((token for token in reply.token_ids if not 0 <= token < len(self._tokenizer)), None)
            if wrong is not None:
                message = f"its reply has the token {wrong}; the tokenizer has those from 0 to"
                raise EnvironmentFailedError(f"{message} {len(self._tokenizer) - 1}")
            return reply.token_ids
        if not self._applies_template:
            if reply.text is None:
                raise EnvironmentFailedError("its reply has messages, which need data.apply_chat_template=true")
            return self._tokens_of(reply.text)
        messages = reply.messages or ({"role": "user", "content": reply.text},)
        return self._tokens_of(self._between(messages, turn))

    def _between(self, messages: tuple[Message, ...], turn: Sequence[int]) -> str:
        from jinja2 import TemplateError

        said = [{"role": "user", "content": _QUESTION}, {"role": "assistant", "content": _ANSWER}]
        try:
            rendered: str = self._tokenizer.apply_chat_template(
                [*said, *messages], tokenize=False, add_generation_prompt=True, **self._template_arguments
            )
        except (TemplateError, ValueError, TypeError) as error:
            roles = ", ".join(str(message["role"]) for message in messages)
            raise EnvironmentFailedError(f"the chat template refuses its reply ({roles}): {error}") from error
        _, found, between = rendered.partition(_ANSWER)
        if not found:
            raise EnvironmentFailedError("the chat template shows no turn of the assistant before others")
        if turn[-1] in self._end_token_ids:
            between = between.removeprefix(self._tokenizer.decode([turn[-1]]))
        return between

    def _tokens_of(self, text: str) -> tuple[int, ...]:
        return tuple(self._tokenizer(text, add_special_tokens=False).input_ids)
