"""Log-probabilities in the forms of the two APIs, and of a prompt as vLLM tells them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rlserve.engine.requests.request import TopLogProbs
from rlserve.serving.answers.choice import finite
from rlserve.serving.text.vocabulary import TokenNames, Vocabulary


class CompletionLogProbs:
    """The four columns of ``/v1/completions``; offsets go on from chunk to chunk."""

    def __init__(self, names: TokenNames) -> None:
        self._names = names
        self._offset = 0

    def columns(
        self, token_ids: Sequence[int], log_probs: Sequence[float | None], tops: Sequence[TopLogProbs]
    ) -> dict[str, Any]:
        """Of the next tokens. The first of a prompt has no log-probability."""
        tokens = [self._names.text_of(token_id) for token_id in token_ids]
        offsets = []
        for token in tokens:
            offsets.append(self._offset)
            self._offset += len(token)
        rows = zip(tokens, log_probs, tops or ((),) * len(tokens), strict=True)
        return {
            "tokens": tokens,
            "token_logprobs": [None if value is None else finite(value) for value in log_probs],
            "top_logprobs": [
                None if value is None else self._by_token(token, value, top) for token, value, top in rows
            ],
            "text_offset": offsets,
        }

    def _by_token(self, token: str, log_prob: float, top: TopLogProbs) -> dict[str, float]:
        found: dict[str, float] = {}
        for token_id, value in top:  # likeliest first: of two that read alike, the likelier stays
            found.setdefault(self._names.text_of(token_id), finite(value))
        found.setdefault(token, finite(log_prob))
        return found


def chat_log_probs(
    names: TokenNames, token_ids: Sequence[int], log_probs: Sequence[float], tops: Sequence[TopLogProbs]
) -> dict[str, Any]:
    """The list of ``/v1/chat/completions``."""
    rows = zip(token_ids, log_probs, tops or ((),) * len(token_ids), strict=True)
    content = [
        {
            **_token(names, token_id, log_prob),
            "top_logprobs": [_token(names, other, value) for other, value in top],
        }
        for token_id, log_prob, top in rows
    ]
    return {"content": content, "refusal": None}


def prompt_log_probs(
    vocabulary: Vocabulary,
    token_ids: Sequence[int],
    log_probs: Sequence[float | None],
    tops: Sequence[TopLogProbs],
) -> list[dict[str, Any] | None]:
    """Of each token of a prompt, by token id; nothing of the first."""
    rows = zip(token_ids, log_probs, tops or ((),) * len(token_ids), strict=True)
    return [None if value is None else _by_id(vocabulary, token_id, value, top) for token_id, value, top in rows]


def _by_id(vocabulary: Vocabulary, token_id: int, log_prob: float, top: TopLogProbs) -> dict[str, Any]:
    found: dict[str, Any] = {
        str(other): {"logprob": finite(value), "rank": rank, "decoded_token": vocabulary.text_of(other)}
        for rank, (other, value) in enumerate(top, start=1)
    }
    chosen = {"logprob": finite(log_prob), "rank": None, "decoded_token": vocabulary.text_of(token_id)}
    found.setdefault(str(token_id), chosen)
    return found


def _token(names: TokenNames, token_id: int, log_prob: float) -> dict[str, Any]:
    return {
        "token": names.text_of(token_id),
        "logprob": finite(log_prob),
        "bytes": list(names.bytes_of(token_id)),
    }
