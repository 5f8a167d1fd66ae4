"""Answers of the completions and the chat endpoint, whole or in pieces, read without believing the server."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from rlserve.bench.client.failures import CUT_OFF, MALFORMED, NO_TOKENS, SERVER_ERROR, FailedRequestError

DONE = "[DONE]"
_SPOKEN = ("content", "reasoning", "reasoning_content", "refusal", "tool_calls")
"""Fields of a message or a delta that tokens are in."""


class Answer:
    """What has come of an answer so far."""

    def __init__(self) -> None:
        self.text = ""
        self.reasoning = ""
        """What the model thought before it: it has tokens, but is not said again in the next turn."""
        self.chunk_times_s: list[float] = []
        self.num_input_tokens: int | None = None
        self.num_cached_tokens: int | None = None
        self.num_output_tokens: int | None = None
        self.finish_reason: str | None = None
        self._is_done = False

    def add_event(self, data: str, now_s: float) -> bool:
        """Take an event of a stream; whether it had tokens.

        Raises:
            FailedRequestError: it is no piece of an answer, or an error.
        """
        if data.strip() == DONE:
            self._is_done = True
            return False
        has_tokens = self._add(_object(data), "delta")
        if has_tokens:
            self.chunk_times_s.append(now_s)
        return has_tokens

    def add_whole(self, body: str) -> None:
        """Take an answer that was not streamed.

        Raises:
            FailedRequestError: it is none.
        """
        self._add(_object(body), "message")
        self._is_done = True

    def check_complete(self) -> None:
        """Raise FailedRequestError where the answer stopped before its end, or has nothing in it."""
        if not self._is_done and self.finish_reason is None:
            raise FailedRequestError(CUT_OFF, f"the stream ended after {len(self.chunk_times_s)} pieces with no reason")
        if not self.text and not self.reasoning and not self.chunk_times_s and not self.num_output_tokens:
            raise FailedRequestError(NO_TOKENS, f"the answer has none (finish_reason {self.finish_reason})")

    def _add(self, found: Mapping[str, Any], name: str) -> bool:
        if found.get("error"):
            error = found["error"]
            message = error.get("message") if isinstance(error, dict) else error
            raise FailedRequestError(SERVER_ERROR, str(message))
        self._read_usage(found.get("usage"))
        choices = found.get("choices")
        if not isinstance(choices, list):
            raise FailedRequestError(MALFORMED, f"no choices in {str(dict(found))[:200]}")
        num_spoken = sum(self._read_choice(choice, name) for choice in choices)
        return num_spoken > 0

    def _read_choice(self, choice: Any, name: str) -> bool:
        if not isinstance(choice, dict):
            raise FailedRequestError(MALFORMED, f"a choice is no object: {str(choice)[:200]}")
        spoken = choice.get(name, choice)
        if not isinstance(spoken, dict):
            raise FailedRequestError(MALFORMED, f"{name} is no object: {str(spoken)[:200]}")
        self.finish_reason = choice.get("finish_reason") or self.finish_reason
        text = spoken.get("content" if name in choice else "text")
        self.text += text if isinstance(text, str) else ""
        reasoning = spoken.get("reasoning") or spoken.get("reasoning_content")
        self.reasoning += reasoning if isinstance(reasoning, str) else ""
        # A token may be a part of a character, and have no text of its own.
        return bool(text or choice.get("token_ids") or any(spoken.get(field) for field in _SPOKEN))

    def _read_usage(self, usage: Any) -> None:
        if not isinstance(usage, dict):
            return
        self.num_input_tokens = _count(usage.get("prompt_tokens"), self.num_input_tokens)
        self.num_output_tokens = _count(usage.get("completion_tokens"), self.num_output_tokens)
        details = usage.get("prompt_tokens_details")
        if isinstance(details, dict):
            self.num_cached_tokens = _count(details.get("cached_tokens"), self.num_cached_tokens)


def _count(value: Any, otherwise: int | None) -> int | None:
    return value if type(value) is int and value >= 0 else otherwise


def _object(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError as error:
        raise FailedRequestError(MALFORMED, f"no JSON ({error}): {text[:200]}") from error
    if not isinstance(found, dict):
        raise FailedRequestError(MALFORMED, f"no object: {text[:200]}")
    return found
