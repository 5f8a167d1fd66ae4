"""A tokenizer as a server needs it: text to tokens, tokens to text, and what each token is by itself."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Any, Protocol

from rlserve.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_BYTE_PIECE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_TAG = re.compile(r"</?[a-z_]+>")
_SPACE_PIECE = "▁"
_MAX_WHOLE = 2**53
"""Whole numbers below it every reader of JSON can have."""
_CACHED_TOKENS = 65_536


class TokenNames(Protocol):
    """How log-probabilities call tokens."""

    def text_of(self, token_id: int) -> str:
        """The name."""

    def bytes_of(self, token_id: int) -> bytes:
        """The same as bytes."""


class TokensByNumber:
    """``token_id:7``, as vLLM does where it is asked to."""

    def text_of(self, token_id: int) -> str:
        """The name."""
        return f"token_id:{token_id}"

    def bytes_of(self, token_id: int) -> bytes:
        """The same as bytes."""
        return self.text_of(token_id).encode()


class Vocabulary:
    """
    Args:
        tokenizer: one that the library ``tokenizers`` computes.

    Raises:
        ModelError: it is another kind.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None:
            raise ModelError(
                f"{tokenizer.name_or_path}: its tokenizer has no tokenizer.json; save it as a fast tokenizer with "
                "transformers, or name another in model.tokenizer_path"
            )
        self.backend: Any = backend
        self._tokenizer = tokenizer
        self._added = {token_id: str(token) for token_id, token in tokenizer.added_tokens_decoder.items()}
        self.tag_tokens = frozenset(text for text in self._added.values() if _TAG.fullmatch(text))
        """Tags that are tokens of their own."""
        self.special_ids = frozenset(tokenizer.all_special_ids)
        """Tokens that are no text."""
        decoder = repr(backend.decoder)
        self._is_byte_level = "ByteLevel" in decoder
        self._has_space_pieces = _SPACE_PIECE in decoder or "Metaspace" in decoder
        self.bytes_of = lru_cache(_CACHED_TOKENS)(self._bytes_of)
        """What a token stands for: some end in the middle of a character."""
        self.text_of = lru_cache(_CACHED_TOKENS)(self._text_of)
        """The same as text, with a replacement character for what is none."""

    @property
    def info(self) -> dict[str, Any]:
        """What the tokenizer was made with, as far as JSON can say it."""
        made = {name: _plain(value) for name, value in self._tokenizer.init_kwargs.items()}
        kept = {name: value for name, value in made.items() if _can_be_told(value)}
        return {**kept, "tokenizer_class": type(self._tokenizer).__name__}

    def encode(self, text: str, *, add_special_tokens: bool) -> tuple[int, ...]:
        """The tokens of a text."""
        return tuple(self._tokenizer(text, add_special_tokens=add_special_tokens).input_ids)

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool) -> str:
        """The text of some tokens."""
        text: str = self.backend.decode(token_ids, skip_special_tokens=skip_special_tokens)
        return text

    def piece_of(self, token_id: int) -> str:
        """A token as the vocabulary spells it; empty for one that it lacks."""
        return self.backend.id_to_token(token_id) or ""

    def _text_of(self, token_id: int) -> str:
        return self.bytes_of(token_id).decode("utf-8", errors="replace")

    def _bytes_of(self, token_id: int) -> bytes:
        piece = self.piece_of(token_id)
        if token_id in self._added:
            return piece.encode()
        if self._is_byte_level:
            known = _bytes_of_characters()
            return b"".join(known.get(character) or character.encode() for character in piece)
        if match := _BYTE_PIECE.fullmatch(piece):
            return bytes.fromhex(match[1])
        return (piece.replace(_SPACE_PIECE, " ") if self._has_space_pieces else piece).encode()


def _can_be_told(value: Any) -> bool:
    """Lengths without a bound are numbers that JSON's readers have no room for."""
    return isinstance(value, str | float | list) or (isinstance(value, int) and abs(value) < _MAX_WHOLE)


def _plain(value: Any) -> Any:
    """Special tokens as their texts."""
    if isinstance(value, list):
        return [str(each) for each in value]
    return value if isinstance(value, str | int | float) else str(getattr(value, "content", "")) or None


@cache
def _bytes_of_characters() -> dict[str, bytes]:
    """How byte-level BPE spells bytes: printable ones as they are, the others from U+0100 on (GPT-2's table)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAC + 1), *range(0xAE, 0xFF + 1)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    spelled = {chr(byte): bytes([byte]) for byte in printable}
    return spelled | {chr(256 + place): bytes([byte]) for place, byte in enumerate(others)}
