"""The contract of who writes prompts."""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from typing import ClassVar, TypeAlias

Prompt: TypeAlias = str | tuple[int, ...]
"""Text, or token ids."""


class PromptWriter(ABC):
    """Writes prompts that say nothing, of as many tokens as asked for."""

    how: ClassVar[str]
    """How lengths are met, for people."""

    @abstractmethod
    def write(self, num_tokens: int, rng: random.Random) -> Prompt:
        """A prompt of ``num_tokens`` tokens that follows from ``rng`` alone."""


def joined(first: Prompt, second: Prompt) -> Prompt:
    """Two prompts of one writer, one after the other."""
    if isinstance(first, str) and isinstance(second, str):
        return first + second
    assert not isinstance(first, str)
    assert not isinstance(second, str)
    return first + second
