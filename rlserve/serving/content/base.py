"""Who finds what is not to be told, and who finds what is not to be answered at all."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

CONTENT_FILTER: Literal["content_filter"] = "content_filter"
"""By which OpenAI's and Azure's clients know a refusal: ``code`` of an error, ``finish_reason`` of an answer."""


@dataclass(frozen=True, kw_only=True)
class Found:
    """A piece of a text that is not to be told."""

    start: int
    end: int
    """The character after its last."""
    kind: str
    """Stands in metrics, and in brackets in the place of what is masked. Never a word of the text."""


class Masker(ABC):
    """Must find the same in the same text, whoever asks, in any thread."""

    @abstractmethod
    def find(self, text: str) -> Sequence[Found]:
        """What is not to be told of a text: some words of a longer one, as :class:`MaskStream` cuts it."""


class ContentFilter(ABC):
    """Refuses prompts and ends answers. Must find the same in the same text, whoever asks, in any thread; and be quick,
    since each piece of an answer waits for it."""

    max_chars = 256
    """Most characters of what it finds. An answer is held back by so many, and shown to it in windows of at least so
    many."""

    @abstractmethod
    def find(self, text: str, start: int) -> Found | None:
        """The first piece that is refused, and begins at ``start`` or later.

        Args:
            text: a prompt, or a window of an answer that goes on behind it.
            start: what is before was searched already, and tells where words begin.
        """

    def num_open(self, text: str) -> int:
        """Characters at the end of a text that may belong to a piece which is not whole yet."""
        return min(len(text), self.max_chars)
