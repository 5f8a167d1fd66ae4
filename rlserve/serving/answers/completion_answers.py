"""``/v1/completions``: choices of whole answers and of chunks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rlserve.engine.requests.request import RequestOutput
from rlserve.serving.answers.choice import ChoiceNews, ChoiceOptions
from rlserve.serving.answers.log_probs import CompletionLogProbs, prompt_log_probs
from rlserve.serving.text.vocabulary import Vocabulary


@dataclass(frozen=True, kw_only=True)
class Echo:
    """A prompt that stands before its answer."""

    text: str
    token_ids: tuple[int, ...]


class CompletionChoice:
    """One choice, from its news.

    Args:
        echo: the prompt, if it is to be told.
        is_told: False where the prompt alone was asked for.
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        options: ChoiceOptions,
        prompt_token_ids: Sequence[int],
        *,
        echo: Echo | None = None,
        is_told: bool = True,
    ) -> None:
        self._vocabulary = vocabulary
        self._options = options
        self._prompt_token_ids = prompt_token_ids
        self._echo = echo
        self._is_told = is_told
        self._log_probs = CompletionLogProbs(options.names(vocabulary))

    def content(self, news: ChoiceNews, output: RequestOutput | None = None) -> dict[str, Any]:
        """The choice with its news. ``output`` is the request's end, for what is told of a prompt."""
        echo = self._echo if news.is_first else None
        token_ids = news.token_ids if self._is_told else []
        text = news.text if self._is_told else ""
        content: dict[str, Any] = {
            "index": news.index,
            "text": text if echo is None else echo.text + text,
            "logprobs": self._columns(news, token_ids, echo, output),
            "finish_reason": None if news.finish_reason is None else str(news.finish_reason),
            "stop_reason": news.stop_reason,
        }
        if self._options.returns_token_ids:
            content["token_ids"] = token_ids
            content["prompt_token_ids"] = list(self._prompt_token_ids) if news.is_first else None
        if self._options.returns_weight_versions:
            content["weight_versions"] = news.weight_spans
        return content

    def prompt_log_probs(self, output: RequestOutput) -> list[dict[str, Any] | None]:
        """What vLLM's ``prompt_logprobs`` tells."""
        return prompt_log_probs(
            self._vocabulary, self._prompt_token_ids, output.prompt_log_probs, output.prompt_top_log_probs
        )

    def _columns(
        self, news: ChoiceNews, token_ids: list[int], echo: Echo | None, output: RequestOutput | None
    ) -> dict[str, Any] | None:
        if self._options.num_logprobs is None:
            return None
        log_probs: list[float | None] = list(news.log_probs[: len(token_ids)])
        tops = news.top_log_probs[: len(token_ids)]
        if echo is None or output is None:
            return self._log_probs.columns(token_ids, log_probs, tops)
        return self._log_probs.columns(
            [*echo.token_ids, *token_ids],
            [*output.prompt_log_probs, *log_probs],
            [*(output.prompt_top_log_probs or ((),) * len(echo.token_ids)), *(tops or ((),) * len(token_ids))],
        )
