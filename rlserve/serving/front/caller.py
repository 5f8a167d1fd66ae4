"""Who a request comes from, and what it takes: made by the gate, known to all that is done for the request."""

from __future__ import annotations

import time
from contextvars import ContextVar
from dataclasses import dataclass, field

from rlserve.serving.accounting import Usage
from rlserve.serving.keys import KeyOwner
from rlserve.serving.rate_limits import KeyLimits


@dataclass(kw_only=True)
class Caller:
    """Of one HTTP request."""

    owner: KeyOwner | None = None
    """Of its key; None without one."""
    limits: KeyLimits | None = None
    usage: Usage = field(default_factory=lambda: Usage(num_requests=1))
    num_held_tokens: int = 0
    """Taken of its key's tokens a minute: the most that it can use."""
    keeps_body: bool = False
    body: bytes = b""
    """For the audit log, where it has text."""
    refused: dict[str, str] | None = None
    """Whether its prompt or an answer was refused for its text, and the kind of what it was; None: neither was."""

    @property
    def num_used_tokens(self) -> int:
        """So far."""
        return self.usage.num_prompt_tokens + self.usage.num_generated_tokens

    def hold(self, number: int) -> None:
        """Take tokens of the key's minute, or raise ``ApiError``."""
        if self.limits is not None:
            self.limits.take_tokens(number, time.monotonic())
            self.num_held_tokens += number

    def settle(self) -> None:
        """The request has ended: give back what it did not use."""
        if self.limits is not None:
            self.limits.give_tokens_back(max(self.num_held_tokens - self.num_used_tokens, 0), time.monotonic())

    def priority(self, asked: int) -> int:
        """What a request gets that asks for some."""
        least = None if self.owner is None else self.owner.priority
        return asked if least is None else max(asked, least)


_current: ContextVar[Caller | None] = ContextVar("caller", default=None)


def enter(caller: Caller) -> None:
    """The task of this request knows it from now on, and those that it starts."""
    _current.set(caller)


def current_caller() -> Caller:
    """Of the request that this task serves; nobody where it serves none."""
    return _current.get() or Caller()
