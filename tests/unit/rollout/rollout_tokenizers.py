"""A character-level tokenizer, made in memory."""

from __future__ import annotations

from typing import Any

from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers.tokenization_utils_tokenizers import PreTrainedTokenizerFast

CHARACTERS = "0123456789+=abcdefghijklmnopqrstuvwxyz <>"


def character_tokenizer(*, chat_template: str | None = None) -> Any:
    """Ids count from 2 in the order of CHARACTERS; 0 is padding, 1 the end. Unknown characters vanish."""
    vocabulary = {"<pad>": 0, "<eos>": 1} | {character: place + 2 for place, character in enumerate(CHARACTERS)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>")
    fast.chat_template = chat_template
    return fast
