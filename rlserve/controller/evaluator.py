"""The contract of what scores the policy on held-out data: by its answers, or by the data's own."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Protocol


class HeldOut(Protocol):
    """What the policy achieved; as text, for the log."""

    @property
    def share_right(self) -> float | None:
        """From 0 to 1, the more the better; None where nothing could be scored."""

    def metrics(self) -> Mapping[str, float]:
        """Under the names of ``rlserve.tracking.names``."""


class Evaluator(ABC):
    """Scores the policy."""

    @abstractmethod
    async def score(self, step: int) -> HeldOut:
        """The score of the policy after ``step`` steps. May be cancelled at any time."""
