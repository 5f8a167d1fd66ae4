"""The model's tokens as bytes, which grammars are matched against; and all masks of a step at once.

Legend: A samples that have a grammar, V vocabulary, W words of 32 bits that hold V bits.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from rlserve.engine.grammars.remembered_masks import RememberedMasks
from rlserve.engine.requests.folder_tokenizer import FolderTokenizer
from rlserve.errors import UserError

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer


class Vocabulary:
    """Shared by all grammars of an engine. Takes about a second for a hundred thousand tokens.

    Args:
        tokenizer: of the model's folder.
        vocab_size: V, of the model's logits; the tokenizer may have more tokens or fewer.
        eos_token_ids: those that end a sample; at least one.

    Raises:
        UserError: the folder has no tokenizer, or one whose tokens cannot be told.
    """

    def __init__(self, tokenizer: FolderTokenizer, vocab_size: int, eos_token_ids: tuple[int, ...]) -> None:
        from llguidance import LLExecutor

        if tokenizer.problem is not None:
            raise UserError(tokenizer.problem)
        self.tokenizer = _ll_tokenizer(tokenizer, vocab_size, list(eos_token_ids))
        self._executor = LLExecutor(num_threads=torch.get_num_threads())
        self._num_words = -(-self.tokenizer.vocab_size // 32)
        self.remembered = RememberedMasks(4 * self._num_words)
        self._ascii_texts: dict[int, bytes | None] = {}
        end_V = np.zeros(32 * self._num_words, dtype=np.bool_)
        end_V[list(eos_token_ids)] = True
        self._not_end_W = ~np.packbits(end_V, bitorder="little").view(np.int32)
        inside_V = np.arange(len(end_V)) < vocab_size
        self._inside_W = np.packbits(inside_V, bitorder="little").view(np.int32)

    def no_masks(self, num_masks: int) -> NDArray[np.int32]:
        """[A, W] room for masks."""
        return np.zeros((num_masks, self._num_words), dtype=np.int32)

    def fill(self, masks_AW: NDArray[np.int32], rows: Sequence[int], matchers: Sequence[LLMatcher]) -> None:
        """Write the masks of some matchers into the given rows: one bit a token, lowest first, whether it may come
        next. The end-of-sequence tokens may exactly where the grammar accepts what is there. Computed by several
        threads."""
        self._executor.unsafe_compute_mask_ptr(
            list(zip(matchers, rows, strict=True)), masks_AW.ctypes.data, 4 * self._num_words, len(masks_AW)
        )
        masks_AW &= self._inside_W

    def ascii_text(self, token_id: int) -> bytes | None:
        """What a token is; None for special tokens, and others that are no ASCII text."""
        if token_id not in self._ascii_texts:
            text = b"" if self.tokenizer.is_special_token(token_id) else self.tokenizer.decode_bytes([token_id])
            self._ascii_texts[token_id] = text if text and text.isascii() else None
        return self._ascii_texts[token_id]

    def must_end(self, masks_AW: NDArray[np.int32]) -> NDArray[np.bool_]:
        """[A] whether nothing but an end-of-sequence token may come next."""
        return np.asarray(~(masks_AW & self._not_end_W).any(axis=1))


def _ll_tokenizer(tokenizer: FolderTokenizer, vocab_size: int, eos_token_ids: list[int]) -> LLTokenizer:
    from llguidance import LLTokenizer

    definition = json.loads(tokenizer.definition())
    highest = max(tokenizer.token_ids().values())
    num_tokens = max(vocab_size, highest + 1)
    if (definition.get("decoder") or {"type": "Fuse"})["type"] == "Fuse":
        plain = _PlainTokens(tokenizer, num_tokens, eos_token_ids)
        return LLTokenizer(plain, n_vocab=num_tokens, eos_token=eos_token_ids)  # type: ignore[arg-type]
    try:
        return LLTokenizer(json.dumps(definition), n_vocab=num_tokens, eos_token=eos_token_ids)
    except ValueError as error:
        raise UserError(f"structured outputs cannot be made with this tokenizer: {error}") from error


class _PlainTokens:
    """What llguidance asks of a tokenizer whose text is that of its tokens, one behind the other."""

    is_tokenizer_wrapper = True
    bos_token_id = None

    def __init__(self, tokenizer: FolderTokenizer, num_tokens: int, eos_token_ids: list[int]) -> None:
        self.eos_token_id = eos_token_ids[0]
        self.special_token_ids: list[int] = tokenizer.special_token_ids()
        self.tokens = [b""] * num_tokens
        for token, token_id in tokenizer.token_ids().items():
            self.tokens[token_id] = token.encode()
        self._encode = tokenizer.encode

    def __call__(self, text: str) -> list[int]:
        return list(self._encode(text))
