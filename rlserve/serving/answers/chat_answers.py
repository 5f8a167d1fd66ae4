"""``/v1/chat/completions``: choices of whole answers and of chunks."""

from __future__ import annotations

from typing import Any

from rlserve.serving.answers.choice import ChoiceNews, ChoiceOptions
from rlserve.serving.answers.log_probs import chat_log_probs
from rlserve.serving.text.vocabulary import Vocabulary


def chat_choice(vocabulary: Vocabulary, options: ChoiceOptions, news: ChoiceNews) -> dict[str, Any]:
    """A whole answer."""
    message = {"role": "assistant", "content": news.text, "refusal": None}
    return {"index": news.index, "message": message, **_common(vocabulary, options, news)}


def chat_chunk(vocabulary: Vocabulary, options: ChoiceOptions, news: ChoiceNews) -> dict[str, Any]:
    """A part of one."""
    delta = {"content": news.text} if news.text or news.finish_reason is None else {}
    return {"index": news.index, "delta": delta, **_common(vocabulary, options, news)}


def first_chat_chunk(index: int) -> dict[str, Any]:
    """What comes before all parts: who speaks."""
    delta = {"role": "assistant", "content": ""}
    return {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}


def _common(vocabulary: Vocabulary, options: ChoiceOptions, news: ChoiceNews) -> dict[str, Any]:
    content: dict[str, Any] = {
        "logprobs": None
        if options.num_logprobs is None
        else chat_log_probs(vocabulary, news.token_ids, news.log_probs, news.top_log_probs),
        "finish_reason": None if news.finish_reason is None else str(news.finish_reason),
        "stop_reason": news.stop_reason,
    }
    if options.returns_token_ids:
        content["token_ids"] = news.token_ids
    if options.returns_weight_versions:
        content["weight_versions"] = news.weight_spans
    return content
