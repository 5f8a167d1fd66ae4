"""Stop strings: text is decoded token by token and searched where a new match could end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
_MAX_HELD_TOKENS = 8
"""A character has at most four bytes; tokens that still make none are broken text, which is taken as it is."""


class Detokenizer(Protocol):
    """What is needed of a tokenizer."""

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of some tokens, special tokens included."""
        ...


class StopStringChecker:
    """Follows the text of one sample.

    Args:
        prompt: its tokens; the last ones give the decoder its context. Some decoders drop the space that a text begins
            with.
        stop: strings to be found in what is generated.
    """

    def __init__(self, detokenizer: Detokenizer, prompt: Sequence[int], stop: tuple[str, ...]) -> None:
        self._detokenizer = detokenizer
        self._stop = stop
        self._keep = max(len(string) for string in stop) - 1
        self._tail = ""
        self._token_ids = list(prompt[-_MAX_HELD_TOKENS:])
        self._num_emitted = len(self._token_ids)
        """Tokens whose text is in the tail; the one or few before them give the decoder its context."""
        self._context_start = 0

    def push(self, token_id: int) -> str | None:
        """Take the next token and return the stop string that its text completes, if one is.

        Text is held back while it ends within a character, as byte-level tokens do.
        """
        self._token_ids.append(token_id)
        known = self._detokenizer.decode(self._token_ids[self._context_start : self._num_emitted])
        text = self._detokenizer.decode(self._token_ids[self._context_start :])
        num_held = len(self._token_ids) - self._num_emitted
        if num_held < _MAX_HELD_TOKENS and (len(text) <= len(known) or text.endswith(_REPLACEMENT)):
            return None
        self._context_start, self._num_emitted = self._num_emitted, len(self._token_ids)
        new = text[len(known) :]
        window = self._tail + new
        self._tail = window[-self._keep :] if self._keep else ""
        # What ends before the new text was there before, and was passed over for min_tokens.
        starts = {string: max(0, len(window) - len(new) - len(string) + 1) for string in self._stop}
        return next((string for string, start in starts.items() if window.find(string, start) >= 0), None)
