"""Configuration of the manager. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from rlserve.errors import check_fields


@dataclass(frozen=True, kw_only=True)
class QueueThresholdConfig:
    """The queue-length rule: a long queue of prompts takes slots from training, a short one gives them back."""

    policy: Literal["queue_threshold"] = "queue_threshold"
    """When slots move between training and rollout."""
    interval_s: float = 1.0
    """Time between two decisions."""
    cooldown_s: float = 60.0
    """Least time between the end of one move and the next."""
    queue_high: int = 100
    """Queue length above which one more slot goes to rollout."""
    queue_low: int = 10
    """Queue length below which one slot goes back to training."""
    max_rollout_share: float = 0.8
    """Largest share of the pool that may be rollout."""
    min_rollout_share: float = 0.2
    """Smallest share of the pool that may be rollout."""

    def __post_init__(self) -> None:
        check_fields(
            self,
            {
                "interval_s": self.interval_s > 0 or "must be above 0",
                "cooldown_s": self.cooldown_s >= 0 or "must be at least 0",
                "queue_low": 0 <= self.queue_low < self.queue_high
                or f"must be at least 0 and below queue_high ({self.queue_high})",
                "max_rollout_share": 0 < self.max_rollout_share <= 1 or "must be in (0, 1]",
                "min_rollout_share": 0 <= self.min_rollout_share <= self.max_rollout_share
                or f"must be at least 0 and not above max_rollout_share ({self.max_rollout_share})",
            },
        )


@dataclass(frozen=True, kw_only=True)
class StaticConfig:
    """Nothing ever moves: the split stays as it starts."""

    policy: Literal["static"] = "static"
    """When slots move between training and rollout."""
    interval_s: float = 1.0
    """Time between two looks at the slots, which replace lost ones."""

    def __post_init__(self) -> None:
        check_fields(self, {"interval_s": self.interval_s > 0 or "must be above 0"})


ManagerConfig = QueueThresholdConfig | StaticConfig
"""Any policy's; without a ``policy`` it is the first."""
