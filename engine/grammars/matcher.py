"""A compiled grammar, and where the samples of its requests stand in it.

Legend: G generated tokens of a sample, A samples, W words of 32 bits, one bit a token.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from rlserve.engine.grammars.automaton import Automaton
from rlserve.engine.grammars.remembered_masks import MaskPlace
from rlserve.engine.grammars.vocabulary import Vocabulary

if TYPE_CHECKING:
    from llguidance import LLMatcher

ALL_ALLOWED = np.int32(-1)
"""32 tokens that may come next."""
NOTHING_LEFT = "no token is left to draw: the structured output and the other rules forbid all"


class Grammar:
    """Compiled once for all requests that want the same."""

    def __init__(self, start: LLMatcher, vocabulary: Vocabulary, automaton: Automaton | None = None) -> None:
        """``start`` has consumed nothing. ``automaton``: of the same regular expression, where there is one."""
        self._start = start
        self._vocabulary = vocabulary
        self._automaton = automaton

    def matcher(self) -> GrammarMatcher:
        """For a sample of its own."""
        return GrammarMatcher(self._start.deep_copy(), self._vocabulary, self._automaton)


class GrammarMatcher:
    """Where one sample stands: a function of its tokens alone. It is told all of them each time and takes those that
    it has not seen, so nothing has to be undone or kept where a sample is preempted, resumed, or given new weights."""

    def __init__(self, matcher: LLMatcher, vocabulary: Vocabulary, automaton: Automaton | None) -> None:
        self.vocabulary = vocabulary
        self.problem: str | None = None
        """Why the sample cannot go on, if it cannot."""
        self._matcher = matcher
        self._automaton = automaton
        self._state: int | None = None if automaton is None else automaton.start
        self._num_taken = 0
        self._not_consumed: list[int] = []
        """Tokens that the automaton has seen, and the matcher has not."""

    def follow(self, token_ids_G: NDArray[np.int32]) -> None:
        """Take what is new of all tokens of the sample."""
        new = token_ids_G[self._num_taken :].tolist()
        self._num_taken = len(token_ids_G)
        self._not_consumed += new
        for token_id in new:
            if self._state is None or self._automaton is None:
                break
            text = self.vocabulary.ascii_text(token_id)
            self._state = None if text is None else self._automaton.after(self._state, text)

    @property
    def place(self) -> MaskPlace | None:
        """Where its mask is that of every other sample; None where that is not known. Where just one text can follow,
        it is not: there the mask is the token that the tokenizer would take, which depends on the tokens before."""
        if self._automaton is None or self._state is None or not self._automaton.is_open(self._state):
            return None
        return self._automaton, self._state

    def up_to_date(self) -> LLMatcher:
        """The matcher, when it has consumed all tokens."""
        if self._not_consumed and self.problem is None and not self._matcher.consume_tokens(self._not_consumed):
            self.problem = "the tokens so far do not follow the structured output"
        self._not_consumed = []
        return self._matcher

    def check(self, *, is_empty: bool) -> None:
        """Note whether the mask that was just computed could be, and is not empty."""
        if self.problem is not None:
            return
        if not self._matcher.is_error():
            self.problem = NOTHING_LEFT if is_empty else None
        else:
            self.problem = f"the structured output is too complex here: {first_line(self._matcher.get_error())}"


def masks_of(matchers: Sequence[GrammarMatcher]) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
    """[A, W] the tokens that may come next, and [A] whether only the end may. Matchers with a problem allow all."""
    vocabulary = matchers[0].vocabulary
    masks_AW = vocabulary.no_masks(len(matchers))
    places = [matcher.place for matcher in matchers]
    unknown = []
    for index, place in enumerate(places):
        known_W = None if place is None else vocabulary.remembered.get(place)
        if known_W is None:
            unknown.append(index)
        else:
            masks_AW[index] = known_W
    if unknown:
        vocabulary.fill(masks_AW, unknown, [matchers[index].up_to_date() for index in unknown])
        is_empty = np.asarray(~masks_AW.any(axis=1)).tolist()
        for index in unknown:
            matchers[index].check(is_empty=is_empty[index])
            if matchers[index].problem is not None:
                masks_AW[index] = ALL_ALLOWED
            elif (place := places[index]) is not None:
                vocabulary.remembered.put(place, masks_AW[index])
    return masks_AW, vocabulary.must_end(masks_AW)


def first_line(text: str) -> str:
    """Of a message that goes on with details."""
    return text.strip().partition("\n")[0]
