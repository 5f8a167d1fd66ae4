"""Bodies of requests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from rlserve.bench.prompts.base import Prompt, joined
from rlserve.bench.workloads.base import Message, Turn
from rlserve.errors import UserError


class Endpoint(StrEnum):
    """Where requests go to."""

    COMPLETIONS = "completions"
    CHAT = "chat"

    @property
    def path(self) -> str:
        """Below ``/v1``."""
        return "/chat/completions" if self is Endpoint.CHAT else "/completions"


@dataclass(frozen=True, kw_only=True)
class RequestSettings:
    """What all requests have in common."""

    model: str
    endpoint: Endpoint
    is_streamed: bool = True
    extra: Mapping[str, Any] = field(default_factory=dict)
    """Fields of the body besides, in place of ours where they have the same name."""


@dataclass(frozen=True)
class History:
    """What a conversation has so far: messages for the chat endpoint, a prompt for the other."""

    messages: tuple[Message, ...] = ()
    prompt: Prompt = ""

    def asked(self, turn: Turn, endpoint: Endpoint) -> History:
        """With what a turn adds.

        Raises:
            UserError: the endpoint does not take such turns.
        """
        if endpoint is Endpoint.CHAT:
            if turn.prompt and not isinstance(turn.prompt, str):
                raise UserError("token ids are for --endpoint completions: the chat endpoint takes text alone")
            added = turn.messages or ({"role": "user", "content": turn.prompt},)
            return History(messages=(*self.messages, *added))
        if turn.messages:
            raise UserError("messages are for --endpoint chat: the completions endpoint takes prompts alone")
        return History(prompt=joined(self.prompt, turn.prompt) if self.prompt else turn.prompt)

    def answered(self, text: str, endpoint: Endpoint) -> History:
        """With the answer.

        Raises:
            UserError: the prompt is token ids, and an answer is text.
        """
        if endpoint is Endpoint.CHAT:
            return History(messages=(*self.messages, {"role": "assistant", "content": text}))
        if not isinstance(self.prompt, str):
            raise UserError("conversations of several turns are text: leave out --token-ids")
        return History(prompt=self.prompt + text)


def request_body(settings: RequestSettings, history: History, turn: Turn) -> dict[str, Any]:
    """What is posted for a turn whose words ``history`` already has."""
    is_chat = settings.endpoint is Endpoint.CHAT
    said: Prompt | Sequence[Message] = history.messages if is_chat else history.prompt
    body: dict[str, Any] = {"model": settings.model, "messages" if is_chat else "prompt": said}
    if turn.max_tokens is not None:
        body["max_completion_tokens" if is_chat else "max_tokens"] = turn.max_tokens
    if turn.ignores_end:
        body["ignore_eos"] = True
    if settings.is_streamed:
        body |= {"stream": True, "stream_options": {"include_usage": True}}
    return {**body, **settings.extra}
