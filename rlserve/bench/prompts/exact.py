"""Prompts of an exact number of tokens, by a tokenizer in a folder or one that a server has."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TypeVar

from tokenizers import Tokenizer

from rlserve.bench.prompts.base import PromptWriter
from rlserve.bench.prompts.words import WORDS
from rlserve.errors import UserError

Piece = TypeVar("Piece", str, int)

MIN_NUM_PIECES = 8
"""Fewer pieces than that would make prompts that a server has in its cache."""
_MAX_NUM_CANDIDATES = 20_000
_MAX_NUM_ATTEMPTS = 8


class FolderTokens:
    """``tokenizer.json`` of a model's folder: counts tokens, and knows pieces of text that are one each.

    Raises:
        UserError: there is none, or none that loads.
    """

    def __init__(self, folder: Path) -> None:
        path = folder / "tokenizer.json"
        if not path.is_file():
            raise UserError(f"{folder} has no tokenizer.json: --tokenizer takes a model's folder with one")
        try:
            self._tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises nothing more special
            raise UserError(f"{path} is no tokenizer that loads: {error}") from error

    def count(self, text: str) -> int:
        """Tokens of a text, without special ones."""
        return len(self.encode(text))

    def encode(self, text: str) -> list[int]:
        """Its token ids, without special ones."""
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def pieces(self) -> dict[str, int]:
        """Pieces of text that are one token, with its id: words if there are enough, else whatever there is."""
        words = self._alone(f" {word}" for word in WORDS)
        if len(words) >= MIN_NUM_PIECES:
            return words
        ids = sorted(self._tokenizer.get_vocab(with_added_tokens=False).values())[:_MAX_NUM_CANDIDATES]
        return self._alone(self._tokenizer.decode([id_]) for id_ in ids)

    def _alone(self, candidates: Iterable[str]) -> dict[str, int]:
        encoded = {text: self.encode(text) for text in candidates if text}
        return {text: ids[0] for text, ids in encoded.items() if len(ids) == 1}


class TextWriter(PromptWriter):
    """Puts pieces together until the tokenizer counts as many tokens as wanted."""

    how = "exact, by the tokenizer, before any chat template"

    def __init__(self, tokens: FolderTokens) -> None:
        """Raises UserError where hardly any piece of text is one token."""
        self._tokens = tokens
        self._pieces = _enough(list(tokens.pieces()))

    def write(self, num_tokens: int, rng: random.Random) -> str:
        """Exact where the tokenizer allows it; where neighbours keep merging, as near as a few attempts come."""
        pieces = rng.choices(self._pieces, k=num_tokens)
        for _ in range(_MAX_NUM_ATTEMPTS):
            missing = num_tokens - self._tokens.count("".join(pieces))
            if missing == 0:
                break
            pieces = pieces[:missing] if missing < 0 else pieces + rng.choices(self._pieces, k=missing)
        return "".join(pieces)


class PieceWriter(PromptWriter):
    """Puts pieces together that a server says are one token each."""

    how = "exact, by pieces that are one token each to the server, before any chat template"

    def __init__(self, pieces: Sequence[str]) -> None:
        """Raises UserError where there are hardly any."""
        self._pieces = _enough(pieces)

    def write(self, num_tokens: int, rng: random.Random) -> str:
        """``num_tokens`` pieces."""
        return "".join(rng.choices(self._pieces, k=num_tokens))


class TokenIdWriter(PromptWriter):
    """Token ids, which nothing needs to tokenise: any number is exact."""

    how = "exact, as token ids"

    def __init__(self, token_ids: Sequence[int]) -> None:
        """``token_ids`` are drawn from, each as often as it stands there."""
        self._token_ids = _enough(token_ids)

    def write(self, num_tokens: int, rng: random.Random) -> tuple[int, ...]:
        """``num_tokens`` ids."""
        return tuple(rng.choices(self._token_ids, k=num_tokens))


def _enough(pieces: Sequence[Piece]) -> Sequence[Piece]:
    if len(set(pieces)) < MIN_NUM_PIECES:
        raise UserError(
            f"the tokenizer has {len(set(pieces))} pieces of text that are one token each, too few to write prompts "
            "of: take prompts from a file, by --workload jsonl"
        )
    return pieces
