"""What gives way when replicas are short or there is too much to do. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

from rlserve.serving.config import DegradationConfig


class Level(IntEnum):
    """How much gives way."""

    NORMAL = 0
    SHORTENED = 1
    """Answers are cut to fewer tokens."""
    REFUSING = 2
    """Requests are answered with 503."""


@dataclass(frozen=True, kw_only=True)
class Load:
    """What there is to do, and who does it."""

    num_live_samples: int
    num_places: int
    """Answers that replicas compute at once."""

    @property
    def ratio(self) -> float:
        """Answers under way for each that can be computed at once."""
        return self.num_live_samples / self.num_places if self.num_places else float("inf")


def level_of(load: Load, config: DegradationConfig) -> Level:
    """The level at a load."""
    if load.ratio >= config.refuse_at:
        return Level.REFUSING
    return Level.SHORTENED if load.ratio >= config.shorten_at else Level.NORMAL
