"""The contract of the formats in which models write calls of tools."""

from __future__ import annotations

import secrets
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Tool:
    """A function that the model may call."""

    name: str
    parameters: dict[str, Any]
    """The JSON schema of its arguments."""


@dataclass(frozen=True, kw_only=True)
class CallDelta:
    """News of one call. The first has its id and its name; pieces of its arguments follow."""

    index: int
    id: str | None = None
    name: str | None = None
    arguments: str = ""
    """The next piece of their JSON."""


@dataclass(frozen=True, kw_only=True)
class ToolNews:
    """What is certain with a piece of an answer."""

    content: str = ""
    """Text that is no call."""
    calls: tuple[CallDelta, ...] = ()


class ToolParser(ABC):
    """Takes the text of one answer piece by piece. However it is cut into pieces, contents, names and arguments come
    out the same, one behind the other."""

    @abstractmethod
    def push(self, text: str) -> ToolNews:
        """The next piece."""

    @abstractmethod
    def end(self) -> ToolNews:
        """What was held back: the answer has ended."""


class ToolFormat(ABC):
    """One format."""

    @abstractmethod
    def parser(self, new_id: Callable[[], str]) -> ToolParser:
        """For one answer. ``new_id`` names a call."""

    @abstractmethod
    def grammar(self, tools: Sequence[Tool], *, several: bool, tag_tokens: Collection[str] = ()) -> str:
        """A Lark grammar of answers that are one call of one of the tools, or ``several``, with arguments by their
        schemas, in the very form in which models learn to write them. ``tag_tokens``: tags that are tokens of their
        own."""


def new_call_id() -> str:
    """As OpenAI's are."""
    return f"call_{secrets.token_hex(12)}"
