"""The contract of workloads, and the conversations that they are made of."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from rlserve.bench.prompts.base import Prompt

Message: TypeAlias = Mapping[str, Any]
"""As the chat endpoint takes it: ``role``, ``content``, whatever else."""


@dataclass(frozen=True, kw_only=True)
class Turn:
    """One request. Its ``prompt`` or its ``messages``, whichever it has, follow what the conversation has so far."""

    prompt: Prompt = ""
    messages: tuple[Message, ...] = ()
    max_tokens: int | None = None
    """Most tokens of the answer; None leaves it to the server."""
    ignores_end: bool = False
    """Whether the answer is to have all of ``max_tokens``, whatever the model says."""
    wait_s: float = 0.0
    """Before it is sent, after the answer of the turn before."""

    def __post_init__(self) -> None:
        assert bool(self.prompt) != bool(self.messages), "a turn has a prompt or messages"


@dataclass(frozen=True, kw_only=True)
class Conversation:
    """Turns that follow one another, each with the answers of those before in its prompt."""

    turns: tuple[Turn, ...]
    arrival_s: float | None = None
    """When it was recorded to begin, from the start of the recording."""


class Workload(ABC):
    """Conversations by number: each is the same whatever was asked for before."""

    @property
    def num_conversations(self) -> int | None:
        """How many there are before they repeat; None where each is another."""
        return None

    @property
    def has_messages(self) -> bool:
        """Whether the chat endpoint alone can take them."""
        return False

    @abstractmethod
    def conversation(self, index: int) -> Conversation:
        """The one at ``index``, from 0."""
