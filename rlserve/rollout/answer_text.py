"""The text of an answer, as the reward sees it."""

from __future__ import annotations

from collections.abc import Sequence
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

    def __call__(self, token_ids: Sequence[int] | NDArray[np.int32]) -> str:
        if not self._skip_special_tokens and len(token_ids) and token_ids[-1] in self.end_token_ids:
            token_ids = token_ids[:-1]
        listed = np.asarray(token_ids).tolist()  # of an array the tokenizer first finds out which library's it is
        return str(self.tokenizer.decode(listed, skip_special_tokens=self._skip_special_tokens))
