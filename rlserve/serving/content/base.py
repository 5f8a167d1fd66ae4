"""Who finds what is not to be told."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Found:
    """A piece of a text that is not to be told."""

    start: int
    end: int
    """The character after its last."""
    kind: str
    """Stands in its place, in brackets, and in metrics."""


class Masker(ABC):
    """Must find the same in the same text, whoever asks, in any thread."""

    @abstractmethod
    def find(self, text: str) -> Sequence[Found]:
        """What is not to be told of a text: some words of a longer one, as :class:`MaskStream` cuts it."""
