"""Rows of preferences: a prompt, the answer that was chosen, and the one that was rejected.

A sample is what a reward model reads, and one more token, at which the model's value is the answer's score: the value
of the state before that token is made is what the last token of the text comes to. The token itself is never looked at.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from rlserve.rollout.config import DataConfig
from rlserve.rollout.dataset.base import BadRowError, Number
from rlserve.rollout.dataset.fields import as_prompt, find
from rlserve.rollout.dataset.json_text import described
from rlserve.supervised.base import RowReader, Sample
from rlserve.supervised.chat import ASSISTANT, USER, Chat, Said, messages_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_AFTER = 0
"""The token that stands after the text."""


class PreferenceReader(RowReader):
    """Two samples a row: chosen, rejected. Texts are put together as ``reward.model_path`` does (``ModelText``)."""

    samples_per_row = 2

    def __init__(self, tokenizer: PreTrainedTokenizerBase, config: DataConfig) -> None:
        """
        Raises:
            DataError: a chat template is asked for, and the tokenizer has none.
        """
        self._chat = Chat(tokenizer, config)
        self._tokenizer = tokenizer
        self._config = config

    def read(self, values: Mapping[str, Any]) -> tuple[Sample, ...]:
        config, chats = self._config, self._config.apply_chat_template
        prompt: Said = ()
        if config.prompt_field in values or not chats:  # chosen and rejected may be whole conversations
            found = find(values, config.prompt_field, "prompt_field")
            prompt = as_prompt(found, config.prompt_field, apply_chat_template=chats)
        margin = _margin(values, config.margin_field)
        answers = [
            as_prompt(find(values, field, key), field, apply_chat_template=chats)
            for field, key in ((config.chosen_field, "chosen_field"), (config.rejected_field, "rejected_field"))
        ]
        if answers[0] == answers[1]:
            raise BadRowError(
                f"{config.chosen_field!r} and {config.rejected_field!r} are the same: nothing is preferred"
            )
        chosen, rejected = (self._token_ids(prompt, answer) for answer in answers)
        return (_sample(chosen, margin), _sample(rejected, None if margin is None else 0.0))

    def _token_ids(self, prompt: Said, answer: Said) -> list[int]:
        if not self._config.apply_chat_template:
            assert isinstance(prompt, str), "without a template, rows are checked to be text"
            assert isinstance(answer, str), "without a template, rows are checked to be text"
            end, text = self._tokenizer.eos_token or "", prompt + answer
            return list(self._tokenizer(text if text.endswith(end) else text + end).input_ids)
        messages = self._chat.given((*messages_of(prompt, USER), *messages_of(answer, ASSISTANT)))
        return list(self._tokenizer(self._chat.render(messages), add_special_tokens=False).input_ids)


def _sample(token_ids: list[int], margin: float | None) -> Sample:
    is_trained = np.zeros(len(token_ids) + 1, dtype=bool)
    is_trained[-1] = True
    return Sample(token_ids=np.array([*token_ids, _AFTER], dtype=np.int32), is_trained=is_trained, margin=margin)


def _margin(values: Mapping[str, Any], field: str | None) -> float | None:
    if field is None:
        return None
    found = find(values, field, "margin_field")
    if not isinstance(found, Number):
        raise BadRowError(f"{field!r} must be a number, got {described(found)}")
    return float(found.value)
