"""Words that a request forbids, as the tokens that must not come next.

A word is forbidden as the tokens that it has at the beginning of a text, and as those that it has after a space. A
word of one token is never drawn; of a longer one the last token is not, where the tokens before it were generated
last. So does vLLM, which leaves out the tokens after a space if they are more or fewer. The same text made of other
tokens is not seen.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable

import numpy as np
from numpy.typing import NDArray

from rlserve.engine.requests.request import SamplingParams
from rlserve.engine.requests.validation import Limits, forbids_all


def bad_word_sequences(
    words: Iterable[str], encode: Callable[[str], tuple[int, ...]]
) -> dict[str, tuple[tuple[int, ...], ...]]:
    """The unlike token sequences of each word."""
    return {word: tuple({encode(space + word.lstrip()): None for space in ("", " ")}) for word in words}


def find_bad_word_problem(
    sampling: SamplingParams, limits: Limits, encode: Callable[[str], tuple[int, ...]]
) -> str | None:
    """Why the bad words of a request, otherwise in order, cannot be served, or None."""
    last_token_ids = set()
    for word, sequences in bad_word_sequences(sampling.bad_words, encode).items():
        for sequence in sequences:
            if not sequence or max(sequence) >= limits.vocab_size:
                return f"bad_words has {word!r}, which is no text in tokens of the model"
            last_token_ids.add(sequence[-1])
    if forbids_all(sampling, limits, last_token_ids):
        return "no token may be left to draw: allowed_token_ids, bad_token_ids, bad_words and min_tokens forbid all"
    return None


class BadWords:
    """The bad words of one request."""

    def __init__(self, words: Iterable[str], encode: Callable[[str], tuple[int, ...]]) -> None:
        sequences = [tokens for found in bad_word_sequences(words, encode).values() for tokens in found]
        self.token_ids = [tokens[0] for tokens in sequences if len(tokens) == 1]
        """Words of one token."""
        self._longer: dict[int, list[tuple[int, ...]]] = defaultdict(list)
        """By their last token but one: what was generated last tells which can end now."""
        for tokens in sequences:
            if len(tokens) > 1:
                self._longer[tokens[-2]].append(tokens)

    def ending_after(self, generated: NDArray[np.int32]) -> list[int]:
        """The last tokens of the longer words of which everything else stands at the end of ``generated``."""
        candidates = self._longer.get(int(generated[-1]), ()) if len(generated) else ()
        return [tokens[-1] for tokens in candidates if tuple(generated[-len(tokens) + 1 :].tolist()) == tokens[:-1]]
