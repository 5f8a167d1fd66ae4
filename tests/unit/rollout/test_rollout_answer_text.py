"""What the reward sees of an answer's tokens, with a tokenizer whose think tags are special tokens."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from rollout_tokenizers import character_tokenizer
from tokenizers import Tokenizer, decoders
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from rlserve.rollout.answer_text import AnswerText


@pytest.mark.parametrize(
    ("skip_special_tokens", "text", "expected"),
    [
        (True, "<think>12</think>3<eos>", "123"),
        (False, "<think>12</think>3<eos>", "<think>12</think>3"),
        (False, "<think>12</think>3<turn>", "<think>12</think>3"),
        (False, "<think>1<eos>2", "<think>1<eos>2"),
        (False, "", ""),
    ],
)
def test_special_tokens_are_shown_on_request_and_the_end_never(
    skip_special_tokens: bool, text: str, expected: str
) -> None:
    tokenizer = character_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<think>", "</think>", "<turn>"]})
    tokenizer.backend_tokenizer.decoder = decoders.Fuse()
    decode = AnswerText(
        tokenizer,
        end_token_ids=(tokenizer.convert_tokens_to_ids("<turn>"),),
        skip_special_tokens=skip_special_tokens,
    )
    token_ids = tuple(tokenizer(text, add_special_tokens=False).input_ids)
    assert decode(token_ids) == expected


class _Shouting(PreTrainedTokenizerFast):  # type: ignore[misc]  # transformers tells no types
    def _decode(self, *args: Any, **options: Any) -> str:
        return str(super()._decode(*args, **options)).upper()


@pytest.mark.parametrize(("kind", "cleans_up"), [(PreTrainedTokenizerFast, True), (_Shouting, False)])
def test_what_a_tokenizer_does_beside_decoding_is_done(kind: type[PreTrainedTokenizerFast], cleans_up: bool) -> None:
    model = Tokenizer(WordLevel({"yes": 0, ".": 1, "<eos>": 2}, unk_token="<eos>"))
    tokenizer = kind(tokenizer_object=model, eos_token="<eos>", clean_up_tokenization_spaces=cleans_up)
    decode = AnswerText(tokenizer, end_token_ids=(), skip_special_tokens=True)
    assert decode(np.array([0, 1, 2], dtype=np.int32)) == ("yes." if cleans_up else "YES .")
