"""The text of an answer, as the reward sees it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class AnswerText:
    """Turns an answer's tokens into text."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, *, end_token_ids: Sequence[int], skip_special_tokens: bool
    ) -> None:
        """``skip_special_tokens=False`` leaves special tokens in the text, but for an end token at the very end."""
        self.tokenizer = tokenizer
        self.end_token_ids = frozenset(end_token_ids) | {tokenizer.eos_token_id}
        self._skip_special_tokens = skip_special_tokens
        self._decode = _decoder_of(tokenizer)

    def __call__(self, token_ids: Sequence[int] | NDArray[np.int32]) -> str:
        if not self._skip_special_tokens and len(token_ids) and token_ids[-1] in self.end_token_ids:
            token_ids = token_ids[:-1]
        return self._decode(np.asarray(token_ids).tolist(), skip_special_tokens=self._skip_special_tokens)


def _decoder_of(tokenizer: PreTrainedTokenizerBase) -> Callable[..., str]:
    """What decodes a list of tokens: what ``tokenizer.decode`` ends in, where that adds nothing of its own. It first
    looks at the type of each token, which takes longer than decoding an answer of a few."""
    from transformers import PreTrainedTokenizerFast

    plain = PreTrainedTokenizerFast
    is_plain = all(getattr(type(tokenizer), name, None) is getattr(plain, name) for name in ("decode", "_decode"))
    adds_nothing = is_plain and not tokenizer.clean_up_tokenization_spaces
    decode: Callable[..., str] = tokenizer.backend_tokenizer.decode if adds_nothing else tokenizer.decode
    return decode
