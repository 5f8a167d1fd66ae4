"""Which tokens the grammars of some samples allow next.

Legend: A draws, V vocabulary, W words of 32 bits that hold V bits or more.
"""

from __future__ import annotations

from collections.abc import Sequence as Sequences
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from rlserve.engine.grammars.matcher import ALL_ALLOWED, NOTHING_LEFT, GrammarMatcher, masks_of
from rlserve.engine.kernels.torch_kernels import forbidden_tokens
from rlserve.engine.sequences.sequence import Sequence
from rlserve.engine.sequences.table import SequenceTable


@dataclass(frozen=True, kw_only=True, eq=False)
class GrammarMasks:
    """Of the draws of a step. Those without a grammar may draw all tokens, and so may those that cannot go on: what
    they draw is no token."""

    allowed: NDArray[np.int32]
    """[A, W] one bit a token, lowest first."""
    must_end: NDArray[np.bool_]
    """[A] nothing is allowed but the end."""
    matchers: list[GrammarMatcher | None]
    """Of each draw."""

    def note_dead_ends(self, logits_NV: torch.Tensor, places_N: NDArray[np.intp]) -> None:
        """Find the samples to which other rules leave none of the allowed tokens: they cannot go on.

        Args:
            logits_NV: of the draws at ``places_N``; minus infinity where other rules forbid a token.
        """
        is_forbidden_NV = forbidden_tokens(self.allowed[places_N], logits_NV.shape[1], logits_NV.device)
        is_empty_N = logits_NV.masked_fill(is_forbidden_NV, -torch.inf).amax(dim=1).isneginf().tolist()
        for place, is_empty in zip(places_N.tolist(), is_empty_N, strict=True):
            matcher = self.matchers[place]
            if matcher is not None and is_empty and matcher.problem is None:
                matcher.problem = NOTHING_LEFT
                self.allowed[place] = ALL_ALLOWED

    def impossible(self) -> list[int]:
        """The draws of samples that cannot go on."""
        return [
            place for place, matcher in enumerate(self.matchers) if matcher is not None and matcher.problem is not None
        ]


def grammar_masks(table: SequenceTable, sequences_A: Sequences[Sequence]) -> GrammarMasks | None:
    """Masks for the next draw of each sample; None if none has a grammar. All tokens of those that have one must be
    known."""
    places = [place for place, sequence in enumerate(sequences_A) if sequence.owner.grammar is not None]
    if not places:
        return None
    matchers: list[GrammarMatcher | None] = [None] * len(sequences_A)
    for place in places:
        matchers[place] = _matcher(sequences_A[place], table)
    masks, must_end = masks_of([matcher for matcher in matchers if matcher is not None])
    allowed_AW = np.full((len(sequences_A), masks.shape[1]), ALL_ALLOWED)
    allowed_AW[places] = masks
    must_end_A = np.zeros(len(sequences_A), dtype=np.bool_)
    must_end_A[places] = must_end
    return GrammarMasks(allowed=allowed_AW, must_end=must_end_A, matchers=matchers)


def _matcher(sequence: Sequence, table: SequenceTable) -> GrammarMatcher:
    if sequence.grammar_matcher is None:
        assert sequence.owner.grammar is not None
        sequence.grammar_matcher = sequence.owner.grammar.matcher()
    sequence.grammar_matcher.follow(table.generated(sequence.row))
    return sequence.grammar_matcher
