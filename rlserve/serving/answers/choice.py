"""One answer as it grows, whatever API asked for it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Literal

from rlserve.engine.requests.delta import SampleDelta
from rlserve.engine.requests.request import FinishReason, TopLogProbs
from rlserve.serving.content.base import CONTENT_FILTER
from rlserve.serving.content.filter_stream import FilterStream
from rlserve.serving.content.mask_stream import MaskStream
from rlserve.serving.text.sample_text import SampleText
from rlserve.serving.text.vocabulary import TokenNames, TokensByNumber, Vocabulary

LEAST_LOG_PROB = -9999.0
"""In the place of what JSON has no number for."""


@dataclass(frozen=True, kw_only=True)
class ChoiceOptions:
    """What is told of each answer."""

    num_logprobs: int | None = None
    """Likeliest tokens of each position beside the chosen one; None tells no log-probabilities."""
    stop: tuple[str, ...] = ()
    include_stop: bool = False
    skip_special_tokens: bool = True
    returns_token_ids: bool = False
    names_tokens_by_number: bool = False
    """Log-probabilities call tokens ``token_id:7``."""
    returns_weight_versions: bool = False
    end_token_ids: frozenset[int] = frozenset()
    """Those of the model, which are no ``stop_reason``."""
    new_mask: Callable[[], MaskStream] | None = None
    """Of each answer's text; None tells all of it."""
    new_filter: Callable[[], FilterStream] | None = None
    """Of each answer's text; None refuses nothing."""

    def names(self, vocabulary: Vocabulary) -> TokenNames:
        """What log-probabilities call tokens."""
        return TokensByNumber() if self.names_tokens_by_number else vocabulary

    @property
    def tells_tokens(self) -> bool:
        """Whether more than text is told of each token."""
        return self.num_logprobs is not None or self.returns_token_ids or self.returns_weight_versions


@dataclass(frozen=True, kw_only=True)
class ChoiceNews:
    """What is new of one answer."""

    index: int
    """Among all answers to the client's request."""
    is_first: bool
    text: str
    token_ids: list[int]
    log_probs: list[float]
    top_log_probs: tuple[TopLogProbs, ...]
    weight_spans: list[list[int]]
    """Version, first token, and the one after the last, counted from the answer's beginning."""
    finish_reason: FinishReason | Literal["content_filter"] | None
    stop_reason: int | str | None

    def is_worth_telling(self, options: ChoiceOptions) -> bool:
        """Whether a stream has anything to say of it: text may be held back."""
        return bool(self.text or self.finish_reason is not None or (options.tells_tokens and self.token_ids))


class Choice:
    """Takes the tokens of one sample and gives its news.

    Args:
        index: among all answers to the client's request.
        prompt_token_ids: of its prompt.
    """

    def __init__(
        self, index: int, vocabulary: Vocabulary, options: ChoiceOptions, prompt_token_ids: Sequence[int]
    ) -> None:
        self.index = index
        self.num_tokens = 0
        self._options = options
        self._text = SampleText(
            vocabulary,
            prompt_token_ids,
            stop=options.stop,
            include_stop=options.include_stop,
            skip_special_tokens=options.skip_special_tokens,
        )
        self._mask = None if options.new_mask is None else options.new_mask()
        self._filter = None if options.new_filter is None else options.new_filter()
        self._is_first = True
        self.has_ended = False
        """Whether nothing more is to be told."""

    @property
    def refused_for(self) -> str | None:
        """The kind of what the answer was ended for; None where it was not."""
        return None if self._filter is None or self._filter.refused is None else self._filter.refused.kind

    def take(self, delta: SampleDelta) -> ChoiceNews:
        """The news in a delta. Of an answer that is refused no tokens are told with it: they go on."""
        token_ids: list[int] = delta.tokens.token_ids.tolist()
        text = self._told(token_ids, delta)
        is_first, self._is_first = self._is_first, False
        if self.refused_for is not None:
            self.num_tokens += len(token_ids)
            return self._refusal(text, is_first=is_first)
        start, self.num_tokens = self.num_tokens, self.num_tokens + len(token_ids)
        is_end_token = delta.stop_reason in self._options.end_token_ids
        wants_spans = self._options.returns_weight_versions
        return ChoiceNews(
            index=self.index,
            is_first=is_first,
            text=text,
            token_ids=token_ids,
            log_probs=[] if self._options.num_logprobs is None else delta.tokens.log_probs.tolist(),
            top_log_probs=delta.top_log_probs,
            weight_spans=_spans(delta.tokens.weight_versions.tolist(), start) if wants_spans else [],
            finish_reason=delta.finish_reason,
            stop_reason=None if is_end_token else delta.stop_reason,
        )

    def _told(self, token_ids: list[int], delta: SampleDelta) -> str:
        """The text that may be told with these tokens."""
        is_last = delta.finish_reason is not None
        text = self._text.push(token_ids)
        if is_last:
            text += self._text.end(delta.stop_reason if isinstance(delta.stop_reason, str) else None)
        if self._filter is not None:
            text = self._filter.push(text) + (self._filter.end() if is_last else "")
        self.has_ended = is_last or self.refused_for is not None
        if self._mask is not None:
            text = self._mask.push(text) + (self._mask.end() if self.has_ended else "")
        return text

    def _refusal(self, text: str, *, is_first: bool) -> ChoiceNews:
        return ChoiceNews(
            index=self.index,
            is_first=is_first,
            text=text,
            token_ids=[],
            log_probs=[],
            top_log_probs=(),
            weight_spans=[],
            finish_reason=CONTENT_FILTER,
            stop_reason=None,
        )


def finite(log_prob: float) -> float:
    """A log-probability that JSON can hold."""
    return max(log_prob, LEAST_LOG_PROB)


def _spans(versions: list[int], start: int) -> list[list[int]]:
    spans = []
    for version, run in groupby(versions):
        end = start + sum(1 for _ in run)
        spans.append([version, start, end])
        start = end
    return spans
