"""``/generate`` and ``/generate_stream``: tokens, ends and details."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any

from rlserve.engine.requests.delta import SampleDelta
from rlserve.engine.requests.request import FinishReason, RequestOutput, TopLogProbs
from rlserve.serving.answers.choice import finite
from rlserve.serving.content.filter_stream import FilterStream
from rlserve.serving.text.sample_text import SampleText
from rlserve.serving.text.vocabulary import Vocabulary


class TgiAnswer:
    """One answer, token by token. Stop strings stay in its text, as they do there."""

    def __init__(
        self, vocabulary: Vocabulary, prompt_token_ids: Sequence[int], special_ids: frozenset[int], seed: int | None
    ) -> None:
        self._vocabulary = vocabulary
        self._special_ids = special_ids
        self._seed = seed
        self._text = SampleText(vocabulary, prompt_token_ids)
        self._parts: list[str] = []
        self.tokens: list[dict[str, Any]] = []
        self.top_tokens: list[list[dict[str, Any]]] = []

    @property
    def text(self) -> str:
        """So far."""
        return "".join(self._parts)

    def take(self, delta: SampleDelta) -> Iterator[dict[str, Any]]:
        """The new tokens. An end that comes without one is an empty special token, which readers pass over."""
        tops: Sequence[TopLogProbs] = delta.top_log_probs or ((),) * len(delta.tokens)
        is_end = delta.finish_reason is not None
        last = len(delta.tokens) - 1
        rows = zip(delta.tokens.token_ids.tolist(), delta.tokens.log_probs.tolist(), tops, strict=True)
        for place, (token_id, log_prob, top) in enumerate(rows):
            text = self._text.push([token_id])
            if is_end and place == last:
                text += self._text.end(None)
            self._parts.append(text)
            token = {**self._token(token_id, log_prob), "text": text}
            self.tokens.append(token)
            self.top_tokens.append([self._token(other, value) for other, value in top])
            yield token
        if is_end and last < 0:
            self._parts.append(self._text.end(None))
            token_id = self.tokens[-1]["id"] if self.tokens else 0
            yield {"id": token_id, "text": self._parts[-1], "logprob": 0.0, "special": True}

    def details(self, delta: SampleDelta) -> dict[str, Any]:
        """How it ended."""
        return {
            "finish_reason": self._finish_reason(delta),
            "generated_tokens": len(self.tokens),
            "seed": self._seed,
        }

    def prefill(self, prompt_token_ids: Sequence[int], output: RequestOutput) -> list[dict[str, Any]]:
        """The prompt's tokens."""
        log_probs = output.prompt_log_probs or (None,) * len(prompt_token_ids)
        return [
            {
                "id": token_id,
                "text": self._vocabulary.text_of(token_id),
                "logprob": None if value is None else finite(value),
            }
            for token_id, value in zip(prompt_token_ids, log_probs, strict=True)
        ]

    def _token(self, token_id: int, log_prob: float) -> dict[str, Any]:
        return {
            "id": token_id,
            "text": self._vocabulary.text_of(token_id),
            "logprob": finite(log_prob),
            "special": token_id in self._special_ids,
        }

    def _finish_reason(self, delta: SampleDelta) -> str:
        if delta.finish_reason is not FinishReason.STOP:
            return "length"
        return "stop_sequence" if isinstance(delta.stop_reason, str) else "eos_token"


class HeldTokens:
    """Tokens of a stream, which wait until a filter lets all of their text pass."""

    def __init__(self, filter_stream: FilterStream) -> None:
        self._filter = filter_stream
        self._waiting: deque[dict[str, Any]] = deque()
        self._num_chars = 0
        """That may be told, beyond the tokens that were."""

    @property
    def refused_for(self) -> str | None:
        """The kind of what ended the answer; None where nothing did."""
        return None if self._filter.refused is None else self._filter.refused.kind

    def push(self, events: Sequence[dict[str, Any]], *, is_last: bool) -> list[dict[str, Any]]:
        """Those that may be told now, of these and of earlier ones."""
        for each in events:
            self._waiting.append(each)
            self._num_chars += len(self._filter.push(_text(each)))
        if is_last:
            self._num_chars += len(self._filter.end())
        told: list[dict[str, Any]] = []
        # A token without text begins a character, whose text the next one has.
        while (size := next((size for size, each in enumerate(self._waiting, 1) if _text(each)), 0)) > 0:
            num_chars = len(_text(self._waiting[size - 1]))
            if num_chars > self._num_chars:
                return told
            self._num_chars -= num_chars
            told += [self._waiting.popleft() for _ in range(size)]
        return [*told, *self._waiting] if is_last and self.refused_for is None else told


def _text(event: dict[str, Any]) -> str:
    text: str = event["token"]["text"]
    return text
