"""The tokenizer of a model folder, for what requests say in text: stop strings, bad words and structured outputs."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from rlserve.errors import UserError

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
        from transformers import AutoTokenizer  # takes seconds, and few requests of a run need it

        return AutoTokenizer.from_pretrained(self._folder, trust_remote_code=False)

    @cached_property
    def problem(self) -> str | None:
        """Why there is no tokenizer, or None if there is one. Looked for once: bad requests come by the thousand."""
        needed = f"stop strings, bad words and structured outputs need a tokenizer, and {self._folder} has none"
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

    def definition(self) -> str:
        """What a ``tokenizer.json`` says of it.

        Raises:
            UserError: it has none: it is not one of the tokenizers library.
        """
        if not self._tokenizer.is_fast:
            raise UserError(f"structured outputs need a tokenizer.json, and {self._folder} has none")
        definition: str = self._tokenizer.backend_tokenizer.to_str()
        return definition

    def token_ids(self) -> dict[str, int]:
        """The id of each token, special tokens included."""
        token_ids: dict[str, int] = self._tokenizer.get_vocab()
        return token_ids

    def special_token_ids(self) -> list[int]:
        """The ids of its special tokens."""
        return list(self._tokenizer.all_special_ids)

    def _encode(self, text: str) -> tuple[int, ...]:
        return tuple(self._tokenizer.encode(text, add_special_tokens=False))


def import_for_tokenizer(folder: Path) -> None:
    """Import now what the first request that has a text would import, which takes seconds: for engines on which
    others' requests would wait for it. The imports depend on the model, so its tokenizer is loaded, and forgotten."""
    _ = FolderTokenizer(folder).problem
