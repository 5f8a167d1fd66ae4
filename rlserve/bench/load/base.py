"""The contract of loads."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Iterator
from typing import TypeAlias

from rlserve.bench.workloads.base import Conversation

Hold: TypeAlias = Callable[[int, Conversation, float], Awaitable[None]]
"""Holds a conversation to its end: its number, the conversation, when it was due."""


class Load(ABC):
    """Decides when each conversation begins. Times are those of the running event loop, from ``start_s``."""

    @property
    @abstractmethod
    def name(self) -> str:
        """For people: ``concurrency 16``."""

    @property
    @abstractmethod
    def level(self) -> float:
        """Where it stands on the axis of a sweep."""

    @property
    @abstractmethod
    def has_due_times(self) -> bool:
        """Whether requests have times of their own, which the client may miss."""

    @abstractmethod
    async def run(self, conversations: Iterator[Conversation], hold: Hold, *, start_s: float, end_s: float) -> None:
        """Begin conversations until there are none, or until ``end_s``; return when all have ended."""
