"""From text and conversations to tokens, of which an assistant's are known.

Whatever a policy would be given in a rollout, and whatever it would say, are tokenised apart, so that a model is
trained on the tokens that it will meet::

    user asks ▏assistant: ▏answers ⏹▏user asks … ▏assistant: ▏answers ⏹▏
    └─────── not said ────┘└─ said ─┘└────── not said ────────┘└─ said ─┘
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from rlserve.rollout.config import DataConfig
from rlserve.rollout.dataset.base import BadRowError
from rlserve.rollout.groups import Message
from rlserve.supervised.base import Sample
from rlserve.supervised.chat import ASSISTANT, Chat

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class TextEncoder:
    """Tokenises prompts with what is said after them."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, config: DataConfig, *, learns_prompts: bool) -> None:
        """``learns_prompts``: all tokens are trained, not only what is said.

        Raises:
            DataError: a chat template is asked for, and the tokenizer has none.
        """
        self._chat = Chat(tokenizer, config)
        self._tokenizer = tokenizer
        self._learns_prompts = learns_prompts

    def completion(self, prompt: str, completion: str) -> Sample:
        """Text after text, closed by the tokenizer's end token.

        Raises:
            BadRowError: nothing is left to learn.
        """
        said = self._encode(completion)
        end = self._tokenizer.eos_token_id
        if end is not None and said[-1:] != [end]:
            said.append(end)
        # As for rollouts, the tokenizer puts its special tokens around a prompt.
        return self._sample([(self._encode(prompt, add_special_tokens=True), False), (said, True)])

    def conversation(self, messages: Sequence[Message], *, num_given: int = 0) -> Sample:
        """A conversation in the chat template; said is what the assistant says after the first ``num_given`` messages.

        Raises:
            BadRowError: the template refuses it, writes turns otherwise once others follow, or nothing is said.
        """
        whole = self._chat.given(messages)
        num_given += len(whole) - len(messages)
        segments = [(self._encode(text), is_said) for text, is_said in self._segments(whole, num_given)]
        return self._sample(segments)

    def _segments(self, messages: Sequence[Message], num_given: int) -> Iterator[tuple[str, bool]]:
        """The rendered text in parts, each with whether it is said."""
        whole, done = self._chat.render(messages), 0
        for number, message in enumerate(messages):
            if message["role"] != ASSISTANT or number < num_given:
                continue
            before = self._chat.render(messages[:number], add_generation_prompt=True)
            through = self._without_space_after_end(self._chat.render(messages[: number + 1]))
            if not (whole.startswith(before) and whole.startswith(through) and len(before) < len(through)):
                raise BadRowError(
                    f"the chat template writes message {number} otherwise once others follow it: give each answer a "
                    f"row of its own, with the conversation up to it"
                )
            yield whole[done : len(before)], False
            yield whole[len(before) : len(through)], True
            done = len(through)
        yield whole[done:], False

    def _without_space_after_end(self, text: str) -> str:
        """Templates put a line's end after the token that ends a turn, before the next; nobody says it."""
        stripped = text.rstrip()
        special = [token.content for token in self._tokenizer.added_tokens_decoder.values() if token.special]
        return stripped if stripped.endswith(tuple(special)) else text

    def _encode(self, text: str, *, add_special_tokens: bool = False) -> list[int]:
        return list(self._tokenizer(text, add_special_tokens=add_special_tokens).input_ids)

    def _sample(self, segments: Sequence[tuple[list[int], bool]]) -> Sample:
        token_ids = [token for tokens, _ in segments for token in tokens]
        is_trained = np.array([is_said or self._learns_prompts for tokens, is_said in segments for _ in tokens], bool)
        is_trained[:1] = False
        if not is_trained.any():
            raise BadRowError("has no token to learn: nothing is said after the first token")
        return Sample(token_ids=np.array(token_ids, dtype=np.int32), is_trained=is_trained)
