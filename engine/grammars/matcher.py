"""A compiled grammar, and where the samples of its requests stand in it.

Legend: G generated tokens of a sample, A samples, W words of 32 bits, one bit a token.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from rlserve.engine.grammars.vocabulary import Vocabulary

if TYPE_CHECKING:
    from llguidance import LLMatcher

ALL_ALLOWED = np.int32(-1)
"""32 tokens that may come next."""
NOTHING_LEFT = "no token is left to draw: the structured output and the other rules forbid all"


class Grammar:
    """Compiled once for all requests that want the same."""

    def __init__(self, start: LLMatcher, vocabulary: Vocabulary) -> None:
        """``start`` has consumed nothing."""
        self._start = start
        self._vocabulary = vocabulary

    def matcher(self) -> GrammarMatcher:
        """For a sample of its own."""
        return GrammarMatcher(self._start.deep_copy(), self._vocabulary)


class GrammarMatcher:
    """Where one sample stands: a function of its tokens alone. It is told all of them each time and takes those that
    it has not seen, so nothing has to be undone or kept where a sample is preempted, resumed, or given new weights."""

    def __init__(self, matcher: LLMatcher, vocabulary: Vocabulary) -> None:
        self.matcher = matcher
        self.vocabulary = vocabulary
        self.problem: str | None = None
        """Why the sample cannot go on, if it cannot."""
        self._num_taken = 0

    def follow(self, token_ids_G: NDArray[np.int32]) -> None:
        """Take what is new of all tokens of the sample."""
        new = token_ids_G[self._num_taken :].tolist()
        self._num_taken = len(token_ids_G)
        if new and self.problem is None and not self.matcher.consume_tokens(new):
            self.problem = "the tokens so far do not follow the structured output"

    def check(self, *, is_empty: bool) -> None:
        """Note whether the last mask could be computed, and is not empty."""
        if self.problem is not None:
            return
        if not self.matcher.is_error():
            self.problem = NOTHING_LEFT if is_empty else None
        else:
            self.problem = f"the structured output is too complex here: {first_line(self.matcher.get_error())}"


def masks_of(matchers: Sequence[GrammarMatcher]) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
    """[A, W] the tokens that may come next, and [A] whether only the end may. Matchers with a problem allow all."""
    vocabulary = matchers[0].vocabulary
    masks_AW = vocabulary.masks([matcher.matcher for matcher in matchers])
    has_bits_A = masks_AW.any(axis=1)
    is_empty_A = np.asarray(~has_bits_A).tolist()
    for place, matcher in enumerate(matchers):
        matcher.check(is_empty=is_empty_A[place])
        if matcher.problem is not None:
            masks_AW[place] = ALL_ALLOWED
    return masks_AW, vocabulary.must_end(masks_AW)


def first_line(text: str) -> str:
    """Of a message that goes on with details."""
    return text.strip().partition("\n")[0]
