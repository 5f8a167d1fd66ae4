"""The contract of the parsers that split off reasoning."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Split:
    """Text that is certain to be one or the other. What comes first in the answer is the reasoning."""

    reasoning: str = ""
    content: str = ""


class ReasoningParser(ABC):
    """Takes the text of one answer piece by piece. However it is cut into pieces, what comes out is the same, one
    behind the other."""

    @abstractmethod
    def push(self, text: str) -> Split:
        """The next piece."""

    @abstractmethod
    def end(self) -> Split:
        """What was held back: the answer has ended."""
