"""The tokenizer of a model folder, for what requests say in text: stop strings and bad words."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

_CACHED_TEXTS = 4096
"""Most texts whose tokens are remembered: the requests of a run say the same words over and over."""


class FolderTokenizer:
    """Loaded when the first request needs it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.encode = lru_cache(_CACHED_TEXTS)(self._encode)
        """The tokens of a text, without special tokens."""

    @cached_property
    def _tokenizer(self) -> Any:
        from transformers import AutoTokenizer  # takes seconds, and few requests need it

        return AutoTokenizer.from_pretrained(self._folder, trust_remote_code=False)

    @cached_property
    def problem(self) -> str | None:
        """Why there is no tokenizer, or None if there is one. Looked for once: bad requests come by the thousand."""
        needed = f"stop strings and bad words need a tokenizer, and {self._folder} has none"
        try:
            tokenizer = self._tokenizer
        except (OSError, ValueError, ImportError, KeyError, TypeError) as error:
            return f"{needed} that loads: {error}"
        # transformers makes one of nothing for some models without its files.
        return None if len(tokenizer) > len(tokenizer.all_special_ids) else needed

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of some tokens, special tokens included."""
        text: str = self._tokenizer.decode(token_ids)
        return text

    def _encode(self, text: str) -> tuple[int, ...]:
        return tuple(self._tokenizer.encode(text, add_special_tokens=False))
