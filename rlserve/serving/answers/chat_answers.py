"""``/v1/chat/completions``: choices of whole answers and of chunks."""

from __future__ import annotations

from typing import Any

from rlserve.engine.requests.request import FinishReason
from rlserve.serving.answers.choice import ChoiceNews, ChoiceOptions
from rlserve.serving.answers.log_probs import chat_log_probs
from rlserve.serving.answers.message import MessageNews, call_deltas, whole_calls
from rlserve.serving.text.vocabulary import Vocabulary


def chat_choice(vocabulary: Vocabulary, options: ChoiceOptions, news: ChoiceNews, part: MessageNews) -> dict[str, Any]:
    """A whole answer."""
    has_content = part.content or not part.calls
    message: dict[str, Any] = {"role": "assistant", "content": part.content if has_content else None, "refusal": None}
    if part.reasoning:
        message["reasoning"] = part.reasoning
    if part.calls:
        message["tool_calls"] = whole_calls(part.calls)
    return {"index": news.index, "message": message, "token_ids": None, **_common(vocabulary, options, news, part)}


def chat_chunk(
    vocabulary: Vocabulary, options: ChoiceOptions, news: ChoiceNews, part: MessageNews
) -> dict[str, Any] | None:
    """A part of one; None where there is nothing to tell: a parser holds the text back."""
    if part.is_empty and news.finish_reason is None and not options.tells_tokens:
        return None
    delta: dict[str, Any] = {"reasoning": part.reasoning} if part.reasoning else {}
    if part.content or (part.is_empty and news.finish_reason is None):
        delta["content"] = part.content
    if part.calls:
        delta["tool_calls"] = call_deltas(part.calls)
    return {"index": news.index, "delta": delta, **_common(vocabulary, options, news, part)}


def first_chat_chunk(index: int) -> dict[str, Any]:
    """What comes before all parts: who speaks."""
    delta = {"role": "assistant", "content": ""}
    return {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}


def _common(vocabulary: Vocabulary, options: ChoiceOptions, news: ChoiceNews, part: MessageNews) -> dict[str, Any]:
    ends_with_calls = part.has_called and news.finish_reason is FinishReason.STOP
    content: dict[str, Any] = {
        "logprobs": None
        if options.num_logprobs is None
        else chat_log_probs(options.names(vocabulary), news.token_ids, news.log_probs, news.top_log_probs),
        "finish_reason": "tool_calls" if ends_with_calls else news.finish_reason and str(news.finish_reason),
        "stop_reason": news.stop_reason,
    }
    if options.returns_token_ids:
        content["token_ids"] = news.token_ids
    if options.returns_weight_versions:
        content["weight_versions"] = news.weight_spans
    return content
