"""Beam search, as pure functions of what the model says: which beginnings of answers are followed, and which are best.

::

    live beams ──their likeliest next tokens──► advance ──► live beams, the likeliest ``width`` of all that go on
                                                  └───────► ended beams: those that an end token follows
    best: the ``width`` best of both by  sum of log-probabilities / (tokens ** length_penalty)

An end token counts as a token. That is the search of vLLM; transformers' with ``early_stopping="never"`` follows the
same beams, and keeps fewer of those that end.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from heapq import nlargest

from rlserve.engine.requests.request import TopLogProbs


@dataclass(frozen=True, kw_only=True, slots=True)
class NextTokens:
    """What the model says of the token after a beam."""

    likeliest: TopLogProbs
    """Likeliest first. The search looks at two for each of its beams: enough when half of them end."""
    weight_version: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Beam:
    """An answer, or the beginning of one. The columns have one entry for each token."""

    token_ids: tuple[int, ...] = ()
    log_probs: tuple[float, ...] = ()
    next_tokens: tuple[NextTokens, ...] = ()
    """What each token was chosen from."""
    sum_log_probs: float = 0.0
    end_token_id: int | None = None
    """The last token, where it ended the answer."""

    def followed_by(self, token_id: int, log_prob: float, chosen_from: NextTokens, *, is_end: bool) -> Beam:
        """One token longer."""
        return Beam(
            token_ids=(*self.token_ids, token_id),
            log_probs=(*self.log_probs, log_prob),
            next_tokens=(*self.next_tokens, chosen_from),
            sum_log_probs=self.sum_log_probs + log_prob,
            end_token_id=token_id if is_end else None,
        )


class BeamSearch:
    """The search from one prompt.

    Args:
        width: beams that are followed at once, and the most answers.
        max_tokens: of an answer.
        length_penalty: above 0 longer answers gain by it, below 0 shorter ones.
        end_token_ids: that end an answer.
    """

    def __init__(self, *, width: int, max_tokens: int, length_penalty: float, end_token_ids: frozenset[int]) -> None:
        self.live = [Beam()]
        """To be followed; empty at the end of the search."""
        self._width = width
        self._max_tokens = max_tokens
        self._length_penalty = length_penalty
        self._end_token_ids = end_token_ids
        self._ended: list[Beam] = []
        """The best ``width`` so far, best first."""

    @property
    def best(self) -> list[Beam]:
        """At the end: the answers, best first; as many as there are beams, if the model has as many tokens."""
        return list(self._ended)

    def advance(self, next_tokens: Sequence[NextTokens]) -> None:
        """Follow each live beam by a token."""
        candidates: list[tuple[float, Beam, int, float, NextTokens]] = []
        ended = list(self._ended)
        for beam, each in zip(self.live, next_tokens, strict=True):
            for token_id, log_prob in each.likeliest[: 2 * self._width]:
                if token_id in self._end_token_ids:
                    ended.append(beam.followed_by(token_id, log_prob, each, is_end=True))
                else:
                    candidates.append((beam.sum_log_probs + log_prob, beam, token_id, log_prob, each))
        self._ended = self._best_of(ended)
        chosen = nlargest(self._width, candidates, key=lambda candidate: candidate[0])
        live = [beam.followed_by(token, log_prob, each, is_end=False) for _, beam, token, log_prob, each in chosen]
        if live and len(live[0].token_ids) == self._max_tokens:
            self._ended, live = self._best_of([*self._ended, *live]), []
        self.live = [] if live and self._is_decided(live) else live

    def _is_decided(self, live: Sequence[Beam]) -> bool:
        """Whether no live beam can still become one of the best. Log-probabilities are never above 0, so a sum only
        falls; what it is divided by is most favourable at the greatest length, or at the next one."""
        if len(self._ended) < self._width:
            return False
        num_tokens = self._max_tokens if self._length_penalty > 0 else len(live[0].token_ids) + 1
        bound = self._score(max(beam.sum_log_probs for beam in live), num_tokens)
        return bound <= self._score_of(self._ended[-1])

    def _best_of(self, beams: Sequence[Beam]) -> list[Beam]:
        return sorted(beams, key=self._score_of, reverse=True)[: self._width]

    def _score_of(self, beam: Beam) -> float:
        return self._score(beam.sum_log_probs, max(len(beam.token_ids), 1))

    def _score(self, sum_log_probs: float, num_tokens: int) -> float:
        return sum_log_probs / math.pow(num_tokens, self._length_penalty)
